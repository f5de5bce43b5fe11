// `leace_fast._C`: the kernels on NumPy and DLPack, and what is known of this build and of the processor. No torch
// header, so that it builds without torch. Work on arrays is serial; that on tensors is divided among torch's threads.
#include <pybind11/pybind11.h>

#include <tuple>

#include "../cpu/common/processor.h"
#include "arrays.h"
#include "direct.h"
#include "leace_fast.h"

#ifndef LEACE_FAST_FLAGS
#define LEACE_FAST_FLAGS ""
#endif

namespace leace_fast::python {
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
  info["instruction_set"] = cpu::name_of(cpu::instruction_set());
  return info;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (int set = 0; set <= int(cpu::instruction_set()); ++set)
    names.emplace_back(cpu::name_of(cpu::InstructionSet(set)));
  return names;
}

py::dict cpu_features() {
  py::dict found;
  for (const cpu::Feature& feature : cpu::features()) found[feature.name] = feature.present;
  return found;
}

leace_fast_dtype compute_dtype(leace_fast_dtype rows) {
  return rows == LEACE_FAST_FLOAT64 ? LEACE_FAST_FLOAT64 : LEACE_FAST_FLOAT32;
}

void expect(const Array& array, const char* name, leace_fast_dtype dtype, const std::vector<int64_t>& shape) {
  if (array.floating != dtype)
    throw py::type_error(std::string(name) + " has another dtype than expected: factors, weight and bias are float64 " +
                         "for float64 rows and float32 for all others; rows are all of one dtype");
  if (array.shape != shape)
    throw py::value_error(std::string(name) + " has shape " + text(array.shape) + ", expected " + text(shape));
}

template <typename Number>
std::vector<char> transposed(const Array& left, int64_t erasers) {
  const int64_t stack = left.dim() - 2, dim = left.shape[stack], rank = left.shape[stack + 1];
  std::vector<char> bytes(erasers * dim * rank * sizeof(Number));
  auto* to = reinterpret_cast<Number*>(bytes.data());
  const auto* from = reinterpret_cast<const Number*>(left.data);
  for (int64_t e = 0; e < erasers; ++e)
    for (int64_t j = 0; j < rank; ++j)
      for (int64_t i = 0; i < dim; ++i)
        *to++ = from[(stack ? e * left.strides[0] : 0) + i * left.strides[stack] + j * left.strides[stack + 1]];
  return bytes;
}

// What every function here is given besides rows: checked, and held.
struct Factors {
  Array left, right;
  std::optional<Array> mean, index;
  std::vector<char> left_t;
  leace_fast_factors plain;

  Factors(const Array& x, const py::object& left_, const py::object& right_, const py::object& mean_,
          const py::object& index_)
      : left(array(left_, "left")),
        right(array(right_, "right")),
        mean(maybe_array(mean_, "mean")),
        index(maybe_array(index_, "index")) {
    if (!x.floating) throw py::type_error("x has another dtype than float32, float64, float16 or bfloat16");
    const size_t stack = index ? 1 : 0;
    if (x.dim() < 1 || left.shape.size() != 2 + stack)
      throw py::value_error("x has shape " + text(x.shape) + " and left " + text(left.shape) +
                            ", expected (..., d) and " + (stack ? "(E, d, k)" : "(d, k)"));
    const auto compute = compute_dtype(*x.floating);
    const int64_t dim = x.shape.back(), rank = left.shape.back(), erasers = stack ? left.shape[0] : 1;
    const auto stacked = [&](std::vector<int64_t> shape) {
      if (stack) shape.insert(shape.begin(), erasers);
      return shape;
    };
    expect(left, "left", compute, stacked({dim, rank}));
    expect(right, "right", compute, stacked({rank, dim}));
    if (mean) expect(*mean, "mean", compute, stacked({dim}));
    if (!is_dense(right) || (mean && !is_dense(*mean)) || (index && !is_dense(*index)))
      throw py::value_error("right, mean and index must be contiguous");
    if (index && (!index->int64 || index->shape != std::vector<int64_t>(x.shape.begin(), x.shape.end() - 1)))
      throw py::value_error("index must be int64, of the leading shape of x");
    left_t = compute == LEACE_FAST_FLOAT64 ? transposed<double>(left, erasers) : transposed<float>(left, erasers);
    plain = {left_t.data(), right.data, mean ? mean->data : nullptr, dim, rank, erasers, nullptr};
  }

  const int64_t* numbers() const { return index ? reinterpret_cast<const int64_t*>(index->data) : nullptr; }
};

int64_t count_rows(const Array& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.shape[i];
  return rows;
}

// Memory for a result like x: what the caller gave, or a new array of NumPy.
py::object result(const py::object& given, const Array& x, const py::object& like) {
  if (!given.is_none()) return given;
  if (!x.numpy) throw py::value_error("x is no array of NumPy: give the array that the result is written to, as out=");
  return py::module_::import("numpy").attr("empty")(like.attr("shape"), like.attr("dtype"));
}

Array target(const py::object& object, const char* name, const Array& x) {
  Array found = array(object, name);
  expect(found, name, *x.floating, x.shape);
  if (!found.writable) throw py::value_error(std::string(name) + " is read-only");
  return found;
}

void check(leace_fast_status status) {
  if (status == LEACE_FAST_BAD_INDEX) throw py::index_error("index names an eraser that is not there");
  if (status == LEACE_FAST_BAD_CPU) throw py::value_error("LEACE_FAST_CPU names no instruction set that runs here");
  if (status != LEACE_FAST_OK) throw std::bad_alloc();
}

py::object project(const py::object& rows, const py::object& left, const py::object& right, const py::object& mean,
                   const py::object& index, const py::object& out) {
  const Array x = array(rows, "x");
  const Factors factors(x, left, right, mean, index);
  const py::object made = result(out, x, rows);
  const Array y = target(made, "out", x);
  const int64_t x_stride = row_stride(x, "x"), y_stride = row_stride(y, "out");
  leace_fast_status status;
  {
    const py::gil_scoped_release release;
    status = leace_fast_project(*x.floating, x.data, x_stride, y.data, y_stride, count_rows(x), &factors.plain,
                                factors.numbers(), nullptr);
  }
  check(status);
  return made;
}

py::tuple add_norm_project(const py::object& rows, const py::object& residual, const py::object& weight,
                           const py::object& bias, leace_fast_norm norm, const Factors& factors, const Array& x,
                           const py::object& out, const py::object& out_summed) {
  const auto compute = compute_dtype(*x.floating);
  const auto scale = maybe_array(weight, "weight"), shift = maybe_array(bias, "bias");
  for (const auto& [part, name] : {std::pair(&scale, "weight"), std::pair(&shift, "bias")}) {
    if (!part->has_value()) continue;
    expect(**part, name, compute, {x.shape.back()});
    if (!is_dense(**part)) throw py::value_error(std::string(name) + " must be contiguous");
  }
  norm.weight = scale ? scale->data : nullptr;
  norm.bias = shift ? shift->data : nullptr;
  const py::object made = result(out, x, rows);
  const Array y = target(made, "out", x);
  const auto added = maybe_array(residual, "residual");
  py::object total = rows;
  std::optional<Array> summed;
  if (added) {
    expect(*added, "residual", *x.floating, x.shape);
    total = result(out_summed, x, rows);
    summed = target(total, "summed", x);
  }
  const int64_t x_stride = row_stride(x, "x"), y_stride = row_stride(y, "out");
  const int64_t added_stride = added ? row_stride(*added, "residual") : 0;
  const int64_t summed_stride = summed ? row_stride(*summed, "summed") : 0;
  leace_fast_status status;
  {
    const py::gil_scoped_release release;
    status = leace_fast_add_norm_project(*x.floating, x.data, x_stride, added ? added->data : nullptr, added_stride,
                                         summed ? summed->data : nullptr, summed_stride, y.data, y_stride,
                                         count_rows(x), &norm, &factors.plain, factors.numbers(), nullptr);
  }
  check(status);
  return py::make_tuple(made, total);
}

py::tuple add_rms_norm_project(const py::object& rows, const py::object& residual, const py::object& weight,
                               double eps, const py::object& left, const py::object& right, const py::object& mean,
                               const py::object& index, double weight_offset, const py::object& out,
                               const py::object& summed) {
  const Array x = array(rows, "x");
  return add_norm_project(rows, residual, weight, py::none(), {0, nullptr, nullptr, eps, weight_offset},
                          Factors(x, left, right, mean, index), x, out, summed);
}

py::tuple add_layer_norm_project(const py::object& rows, const py::object& residual, const py::object& weight,
                                 const py::object& bias, double eps, const py::object& left, const py::object& right,
                                 const py::object& mean, const py::object& index, const py::object& out,
                                 const py::object& summed) {
  const Array x = array(rows, "x");
  return add_norm_project(rows, residual, weight, bias, {1, nullptr, nullptr, eps, 0.0},
                          Factors(x, left, right, mean, index), x, out, summed);
}

void pack(const py::object& left_, const py::object& right_, const py::object& packed_) {
  const Array left = array(left_, "left_t"), right = array(right_, "right"), packed = array(packed_, "packed");
  if (left.dim() != 2) throw py::value_error("left_t has shape " + text(left.shape) + ", expected (k, d)");
  expect(left, "left_t", LEACE_FAST_FLOAT32, left.shape);
  expect(right, "right", LEACE_FAST_FLOAT32, left.shape);
  const int64_t rank = left.shape[0], dim = left.shape[1], size = leace_fast_packed_size(dim, rank, 1);
  if (!packed.bytes || packed.shape != std::vector<int64_t>{size} || !packed.writable)
    throw py::value_error("packed is not as many bytes as packed_size says, or cannot be written to");
  if (!is_dense(left) || !is_dense(right) || !is_dense(packed))
    throw py::value_error("left_t, right and packed must be contiguous");
  const leace_fast_factors factors{left.data, right.data, nullptr, dim, rank, 1, nullptr};
  leace_fast_pack(&factors, packed.data);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  using py::arg;
  module.doc() = "The compiled kernels of leace-fast on arrays of NumPy and of the DLPack protocol.";
  module.attr("INTERFACE") = LEACE_FAST_INTERFACE;
  module.def("build_info", &build_info, "Return the compiler, its flags and the instruction set in use here.");
  module.def("instruction_sets", &instruction_sets, "Return the names of those that may be used, the one in use last.");
  module.def("cpu_features", &cpu_features, "Return the processor features that kernels may use: name -> present.");
  module.def("project", &project, arg("x"), arg("left"), arg("right"), arg("mean") = py::none(),
             arg("index") = py::none(), arg("out") = py::none(),
             "Erase rows x (..., d) into `out`, which may be x, or into a new array of NumPy; return it.");
  module.def("add_rms_norm_project", &add_rms_norm_project, arg("x"), arg("residual"), arg("weight"), arg("eps"),
             arg("left"), arg("right"), arg("mean") = py::none(), arg("index") = py::none(),
             arg("weight_offset") = 0.0, arg("out") = py::none(), arg("summed") = py::none(),
             "Return the erased RMS norm of x + residual, and that sum.");
  module.def("add_layer_norm_project", &add_layer_norm_project, arg("x"), arg("residual"), arg("weight"), arg("bias"),
             arg("eps"), arg("left"), arg("right"), arg("mean") = py::none(), arg("index") = py::none(),
             arg("out") = py::none(), arg("summed") = py::none(),
             "Return the erased layer norm of x + residual, and that sum.");
  module.def(
      "packed_size", [](int64_t dim, int64_t rank) { return leace_fast_packed_size(dim, rank, 1); }, arg("dim"),
      arg("rank"), "Return the bytes of packed factors, 0 where no kernel has a use for them on this processor.");
  module.def(
      "pack",
      &pack, arg("left_t"), arg("right"), arg("packed"),
      "Pack factors left_t and right (k, d) float32 into `packed`, as many bytes as `packed_size` says.");
  module.def("direct", &direct, arg("left_t"), arg("right"), arg("mean") = py::none(), arg("norm") = py::none(),
             arg("packed") = py::none(),
             "Return a function from a dense tensor to its erased rows, or None where torch offers no way to it.");
  module.def("use_threads", &use_threads, arg("parallel_for"),
             "Let those functions divide their work by the leace_fast_parallel_for at this address.");
}

}  // namespace leace_fast::python
