// The shortest way from tensors of torch to a kernel, for calls that cost more than their work.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace leace_fast::python {

// Return a function of a tensor (..., dim), or of such a tensor and the weight and bias of a norm, that returns the
// erased rows; given True beside the tensor alone, it erases them in place. It returns None for whatever it is not made
// for: other devices, layouts and types, and weights of another dtype than the rows. Who calls it makes sure that no
// gradient, mode or compiler follows the call. None in its place if torch does not offer what it takes, or a factor is
// not dense.
//
// left_t (rank, dim), right (rank, dim), mean (dim) or None: tensors, which are kept. norm: None, or whether it is a
// layer norm, eps and what is added to the weight. packed: None, or bytes of leace_fast_pack, for rows without a norm.
pybind11::object direct(const pybind11::object& left_t, const pybind11::object& right, const pybind11::object& mean,
                        const pybind11::object& norm, const pybind11::object& packed);

// Divide much work among the threads of the leace_fast_parallel_for at this address; it is serial until this is called.
void use_threads(uintptr_t parallel_for);

}  // namespace leace_fast::python
