// `leace_fast._C`: what is known of this build and of the processor. No torch header, so that it builds without torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../cpu/features.h"
#include "leace_fast.h"

#ifndef LEACE_FAST_FLAGS
#define LEACE_FAST_FLAGS ""
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["flags"] = LEACE_FAST_FLAGS;
  info["instruction_set"] = leace_fast_instruction_set();
  return info;
}

py::dict cpu_features() {
  py::dict found;
  const auto features = leace_fast::cpu::features();
  for (auto feature = features.begin; feature != features.end; ++feature) found[feature->name] = feature->present;
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The compiled kernels of leace-fast on arrays of NumPy and of the DLPack protocol.";
  module.def("build_info", &build_info, "Return the compiler, its flags and the instruction set in use here.");
  module.def("cpu_features", &cpu_features, "Return the processor features that kernels may use: name -> present.");
}
