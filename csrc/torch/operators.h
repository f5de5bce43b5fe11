// What the operators of every device share: their schemas, and the erasure out of place and in place around the kernel
// of a device.
#pragma once

#include "arguments.h"

namespace leace_fast {

// Rows x (..., d); left (d, k), right (k, d), mean (d,). With `index`, an eraser's number for each row and -1 for none,
// the factors are stacked: (E, d, k), (E, k, d), (E, d). `packed` are the bytes of leace_fast_pack, for the CPU alone.
// The second output of the norms is x + residual, and empty where there is no residual.
template <typename Library>
void define_operators(Library& m) {
  m.def(
      "project(Tensor x, Tensor left, Tensor right, Tensor? mean=None, Tensor? index=None, "
      "Tensor? packed=None) -> Tensor");
  m.def(
      "project_(Tensor(a!) x, Tensor left, Tensor right, Tensor? mean=None, Tensor? index=None, "
      "Tensor? packed=None) -> ()");
  m.def(
      "add_rms_norm_project(Tensor x, Tensor? residual, Tensor? weight, float eps, Tensor left, Tensor right, "
      "Tensor? mean=None, Tensor? index=None, float weight_offset=0.0) -> (Tensor, Tensor)");
  m.def(
      "add_layer_norm_project(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, Tensor left, "
      "Tensor right, Tensor? mean=None, Tensor? index=None) -> (Tensor, Tensor)");
}

template <void (*PROJECT_INTO)(const Tensor& from, const Tensor& to, const Factors& factors)>
Tensor project(const Tensor& x, const Tensor& left, const Tensor& right, const Optional& mean, const Optional& index,
               const Optional& packed) {
  const Factors factors(x, left, right, mean, index, packed);
  const Tensor from = regular(x);
  Tensor to = empty_rows(x);
  PROJECT_INTO(from, to, factors);
  return to;
}

template <void (*PROJECT_INTO)(const Tensor& from, const Tensor& to, const Factors& factors)>
void project_(const Tensor& x, const Tensor& left, const Tensor& right, const Optional& mean, const Optional& index,
              const Optional& packed) {
  const Factors factors(x, left, right, mean, index, packed);
  check_no_overlap(x);
  if (row_stride(x).has_value()) return PROJECT_INTO(x, x, factors);
  Tensor copy = torch::stable::contiguous(x), target = x;
  PROJECT_INTO(copy, copy, factors);
  torch::stable::copy_(target, copy);
}

}  // namespace leace_fast
