// Tensors are looked at through the C functions of DLPack's exchange, which torch offers since 2.10: no torch header,
// and a look costs less than one attribute of a tensor in Python.
#include "direct.h"

#include <exception>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/common/number_formats.h"
#include "dlpack.h"
#include "leace_fast.h"

namespace leace_fast::python {
namespace {

namespace py = pybind11;

// From so many multiplications on, other threads of Python may run meanwhile.
constexpr int64_t LONG_WORK = 1 << 18;

leace_fast_parallel_for threads = nullptr;

// What is used of torch, for as long as the process lives.
struct Torch {
  PyObject *tensor, *parameter, *empty_like, *is_neg, *numel;
  const dlpack::Exchange* exchange = nullptr;

  Torch() {
    const py::module_ torch = py::module_::import("torch");
    const auto kept = [](py::object object) { return object.release().ptr(); };
    tensor = kept(torch.attr("Tensor"));
    parameter = kept(torch.attr("nn").attr("Parameter"));
    empty_like = kept(torch.attr("empty_like"));
    is_neg = kept(torch.attr("Tensor").attr("is_neg"));
    numel = kept(torch.attr("Tensor").attr("numel"));
    const py::object capsule = py::getattr(py::handle(tensor), dlpack::EXCHANGE_ATTRIBUTE, py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), dlpack::EXCHANGE_NAME)) return;
    const auto* found =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::EXCHANGE_NAME));
    if (found->major == dlpack::MAJOR && found->tensor_from_object != nullptr) exchange = found;
  }

  static const Torch& get() {
    // Under the GIL. A static object of its own would be waited for with the GIL held, while the import gives it up.
    static const Torch* once = nullptr;
    if (once == nullptr) once = new Torch;
    return *once;
  }

  // Fill `tensor` with where a dense tensor on the CPU lies that is what its memory says; false for any other.
  bool look(PyObject* object, dlpack::Tensor* found) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor && type != parameter) return false;
    // Wrappers, such as those of torch.func, have no memory.
    if (exchange->tensor_from_object(object, found) != 0) return PyErr_Clear(), false;
    if (found->device_type != dlpack::CPU || found->lanes != 1 || found->ndim < 1 || found->data == nullptr)
      return false;
    int64_t stride = 1;
    for (int32_t i = found->ndim - 1; i >= 0; --i) {
      if (found->shape[i] != 1 && found->strides != nullptr && found->strides[i] != stride) return false;
      stride *= found->shape[i];
    }
    return ask(is_neg, object).ptr() == Py_False;
  }

  // Whether `torch.jit.trace` follows what is called: it makes tensors of all numbers.
  bool traced(PyObject* object) const { return !PyLong_CheckExact(ask(numel, object).ptr()); }

 private:
  static py::object ask(PyObject* method, PyObject* object) {
    PyObject* answer = PyObject_CallOneArg(method, object);
    if (answer == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(answer);
  }
};

const char* start(const dlpack::Tensor& x) { return static_cast<const char*>(x.data) + x.byte_offset; }

leace_fast_dtype compute_dtype(leace_fast_dtype rows) {
  return rows == LEACE_FAST_FLOAT64 ? LEACE_FAST_FLOAT64 : LEACE_FAST_FLOAT32;
}

struct Direct {
  py::object left_t, right, mean, packed;  // whose memory `factors` points to
  leace_fast_dtype compute;
  leace_fast_factors factors;
  std::optional<leace_fast_norm> norm;

  // The weight or bias of a norm in the compute dtype, null for None; false where it does not fit.
  bool vector(PyObject* object, leace_fast_dtype rows, std::vector<float>& widened, const void** to) const {
    *to = nullptr;
    if (object == Py_None) return true;
    dlpack::Tensor part;
    if (!Torch::get().look(object, &part) || floating(part) != rows || part.ndim != 1 || part.shape[0] != factors.dim)
      return false;
    *to = start(part);
    const auto widen_all = [&](const auto* from) {
      widened.resize(factors.dim);
      for (int64_t i = 0; i < factors.dim; ++i) widened[i] = cpu::widen(from[i]);
      *to = widened.data();
    };
    if (rows == LEACE_FAST_BFLOAT16) widen_all(reinterpret_cast<const bfloat16*>(start(part)));
    if (rows == LEACE_FAST_FLOAT16) widen_all(reinterpret_cast<const float16*>(start(part)));
    return true;
  }

  // A new reference to the erased rows, or null: an error is set, or what came is not for this.
  PyObject* operator()(PyObject* const* arguments, bool in_place) const {
    const Torch& torch = Torch::get();
    dlpack::Tensor x, y;
    if (!torch.look(arguments[0], &x) || x.shape[x.ndim - 1] != factors.dim || torch.traced(arguments[0]))
      return nullptr;
    const auto dtype = floating(x);
    if (!dtype || compute_dtype(*dtype) != compute) return nullptr;
    int64_t rows = 1;
    for (int32_t i = 0; i + 1 < x.ndim; ++i) rows *= x.shape[i];
    leace_fast_norm formula{};
    static thread_local std::vector<float> weight, bias;
    if (norm) {
      formula = *norm;
      if (!vector(arguments[1], *dtype, weight, &formula.weight) || !vector(arguments[2], *dtype, bias, &formula.bias))
        return nullptr;
    }
    const auto made = in_place
                          ? py::reinterpret_borrow<py::object>(arguments[0])
                          : py::reinterpret_steal<py::object>(PyObject_CallOneArg(torch.empty_like, arguments[0]));
    if (!made || !torch.look(made.ptr(), &y) || floating(y) != dtype) return nullptr;
    auto* to = const_cast<char*>(start(y));
    std::optional<py::gil_scoped_release> release;
    if (rows * factors.dim * (factors.rank + 1) >= LONG_WORK) release.emplace();
    const auto status =
        norm ? leace_fast_add_norm_project(*dtype, start(x), factors.dim, nullptr, 0, nullptr, 0, to, factors.dim, rows,
                                           &formula, &factors, nullptr, threads)
             : leace_fast_project(*dtype, start(x), factors.dim, to, factors.dim, rows, &factors, nullptr, threads);
    release.reset();
    return status == LEACE_FAST_OK ? made.inc_ref().ptr() : nullptr;
  }
};

PyObject* call(PyObject* capsule, PyObject* const* arguments, Py_ssize_t count) {
  const auto* self = static_cast<const Direct*>(PyCapsule_GetPointer(capsule, nullptr));
  const bool in_place = !self->norm && count == 2 && arguments[1] == Py_True;
  if (!in_place && count != (self->norm ? 3 : 1)) {
    PyErr_SetString(PyExc_TypeError, "expected a tensor, a tensor and True, or a tensor, a weight and a bias");
    return nullptr;
  }
  try {
    PyObject* made = (*self)(arguments, in_place);
    return made != nullptr || PyErr_Occurred() != nullptr ? made : Py_NewRef(Py_None);
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::exception&) {  // of the threads: the operator says it in torch's words
    return Py_NewRef(Py_None);
  }
}

}  // namespace

void use_threads(uintptr_t parallel_for) { threads = reinterpret_cast<leace_fast_parallel_for>(parallel_for); }

py::object direct(const py::object& left_t, const py::object& right, const py::object& mean, const py::object& norm,
                  const py::object& packed) {
  const Torch& torch = Torch::get();
  dlpack::Tensor left, read, centre{}, bytes{};
  if (torch.exchange == nullptr || !torch.look(left_t.ptr(), &left) || !torch.look(right.ptr(), &read) ||
      !(mean.is_none() || torch.look(mean.ptr(), &centre)) || !(packed.is_none() || torch.look(packed.ptr(), &bytes)))
    return py::none();
  const auto dtype = floating(left);
  if (!dtype || *dtype != compute_dtype(*dtype) || floating(read) != dtype || left.ndim != 2 || read.ndim != 2 ||
      left.shape[0] != read.shape[0] || left.shape[1] != read.shape[1] || left.shape[1] == 0 ||
      !(mean.is_none() || (floating(centre) == dtype && centre.ndim == 1 && centre.shape[0] == left.shape[1])))
    return py::none();
  const int64_t rank = left.shape[0], dim = left.shape[1];
  if (!packed.is_none() && (bytes.ndim != 1 || bytes.shape[0] != leace_fast_packed_size(dim, rank, 1)))
    return py::none();
  auto made = std::make_unique<Direct>();
  const leace_fast_factors factors{start(left), start(read), mean.is_none() ? nullptr : start(centre), dim, rank, 1,
                                   packed.is_none() ? nullptr : start(bytes)};
  *made = {left_t, right, mean, packed, *dtype, factors, std::nullopt};
  if (!norm.is_none()) {
    const auto [layer, eps, offset] = norm.cast<std::tuple<bool, double, double>>();
    made->norm = {layer, nullptr, nullptr, eps, offset};
  }
  static PyMethodDef method = {"direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)),
                               METH_FASTCALL, "Return the erased rows, or None."};
  const py::capsule self(made.release(), [](void* held) { delete static_cast<Direct*>(held); });
  return py::reinterpret_steal<py::object>(PyCFunction_New(&method, self.ptr()));
}

}  // namespace leace_fast::python
