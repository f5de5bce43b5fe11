// Arrays of NumPy, and of anything else on the CPU that speaks DLPack (torch, JAX, ...), as pointers; nothing is
// copied.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dlpack.h"
#include "leace_fast.h"

namespace leace_fast::python {

namespace py = pybind11;

struct Array {
  char* data;
  std::vector<int64_t> shape, strides;  // strides in elements
  std::optional<leace_fast_dtype> floating;
  bool int64 = false, bytes = false, writable = true, numpy = false;
  py::object owner;  // keeps `data` alive

  int64_t dim() const { return static_cast<int64_t>(shape.size()); }
};

inline std::string text(const std::vector<int64_t>& shape) {
  return py::str(py::tuple(py::cast(shape))).cast<std::string>();
}

inline Array from_numpy(const py::array& array) {
  Array found;
  found.data = static_cast<char*>(const_cast<void*>(array.data()));
  found.owner = array;
  found.numpy = true;
  found.writable = array.writeable();
  const bool native = array.dtype().attr("isnative").cast<bool>();
  const char kind = native ? array.dtype().kind() : '\0';  // numbers of the other order of bytes are of no known kind
  const int64_t size = array.itemsize();
  if (size == 0) throw py::type_error("an array holds items of no bytes, expected numbers");
  if (kind == 'f' && size == 8) found.floating = LEACE_FAST_FLOAT64;
  if (kind == 'f' && size == 4) found.floating = LEACE_FAST_FLOAT32;
  if (kind == 'f' && size == 2) found.floating = LEACE_FAST_FLOAT16;
  found.int64 = kind == 'i' && size == 8;
  found.bytes = kind == 'u' && size == 1;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    found.shape.push_back(array.shape(i));
    if (array.strides(i) % size != 0) throw py::value_error("the strides of an array are no multiples of its numbers");
    found.strides.push_back(array.strides(i) / size);
  }
  return found;
}

inline Array from_dlpack(const py::object& object, const char* name) {
  if (!py::hasattr(object, "__dlpack__"))
    throw py::type_error(std::string(name) + " is a " + py::str(py::type::of(object)).cast<std::string>() +
                         ", expected an array of NumPy or of the DLPack protocol");
  const py::object capsule = object.attr("__dlpack__")();
  auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  const dlpack::Tensor& tensor = managed->tensor;
  if (tensor.device_type != dlpack::CPU) throw py::value_error(std::string(name) + " is not in the memory of the CPU");
  Array found;
  found.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  found.owner = capsule;  // not consumed: its own destructor frees it
  found.floating = floating(tensor);
  found.int64 = tensor.lanes == 1 && tensor.code == dlpack::INT && tensor.bits == 64;
  found.bytes = tensor.lanes == 1 && tensor.code == dlpack::UINT && tensor.bits == 8;
  int64_t dense = 1;
  found.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  found.strides.resize(tensor.ndim);
  for (int32_t i = tensor.ndim - 1; i >= 0; --i) {
    found.strides[i] = tensor.strides == nullptr ? dense : tensor.strides[i];
    dense *= tensor.shape[i];
  }
  return found;
}

inline Array array(const py::object& object, const char* name) {
  return py::isinstance<py::array>(object) ? from_numpy(object.cast<py::array>()) : from_dlpack(object, name);
}

inline std::optional<Array> maybe_array(const py::object& object, const char* name) {
  return object.is_none() ? std::nullopt : std::optional<Array>(array(object, name));
}

inline bool is_dense(const Array& array) {
  int64_t stride = 1;
  for (int64_t i = array.dim() - 1; i >= 0; --i) {
    if (array.shape[i] != 1 && array.strides[i] != stride) return false;
    stride *= array.shape[i];
  }
  return true;
}

// The distance from each row to the next, for rows (..., d).
inline int64_t row_stride(const Array& rows, const char* name) {
  const int64_t last = rows.dim() - 1;
  int64_t count = 1;
  std::optional<int64_t> stride;
  bool regular = rows.shape[last] < 2 || rows.strides[last] == 1;
  for (const int64_t size : rows.shape)
    if (size == 0) return rows.shape[last];
  for (int64_t i = last - 1; i >= 0; --i) {
    if (rows.shape[i] == 1) continue;
    if (!stride) stride = rows.strides[i];
    regular = regular && rows.strides[i] == *stride * count;
    count *= rows.shape[i];
  }
  if (!regular)
    throw py::value_error(std::string(name) + " has no one distance from row to row: make it contiguous first");
  return stride.value_or(rows.shape[last]);
}

}  // namespace leace_fast::python
