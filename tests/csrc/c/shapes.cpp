// Every function of leace_fast.h on odd shapes in memory of exactly the needed size, against the formula in float64:
// built with sanitizers, it reads or writes past an end loudly. Run by tests/csrc/test_c_api.py.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "../../../csrc/cpu/common/number_formats.h"
#include "leace_fast.h"

namespace {

using leace_fast::bfloat16;
using leace_fast::float16;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

double to_double(float x) { return x; }
double to_double(double x) { return x; }
double to_double(bfloat16 x) { return leace_fast::cpu::widen(x); }
double to_double(float16 x) { return leace_fast::cpu::widen(x); }

// Numbers of 6 bits at most, which every format holds.
template <typename Row>
Row small_number(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  const float value = (static_cast<int>(state >> 26) - 32) / 8.0f;
  if constexpr (std::is_floating_point_v<Row>) {
    return static_cast<Row>(value);
  } else if constexpr (std::is_same_v<Row, bfloat16>) {
    return {static_cast<uint16_t>(leace_fast::cpu::bits_as<uint32_t>(value) >> 16)};
  } else {
    if (value == 0) return {0};
    const uint32_t bits = leace_fast::cpu::bits_as<uint32_t>(value);
    return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - 0x38000000u) >> 13)};
  }
}

template <typename Number>
std::unique_ptr<Number[]> numbers(int64_t count, uint32_t seed, double scale = 1) {
  std::unique_ptr<Number[]> made(new Number[count]);
  for (int64_t i = 0; i < count; ++i) {
    made[i] = small_number<Number>(seed);
    if constexpr (std::is_floating_point_v<Number>) made[i] = static_cast<Number>(made[i] * scale);
  }
  return made;
}

void on_threads(int64_t begin, int64_t end, int64_t grain, leace_fast_body body, void* context) {
  const int64_t part = std::max<int64_t>(grain, (end - begin + 2) / 3);
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += part)
    threads.emplace_back(body, first, std::min(end, first + part), context);
  for (std::thread& thread : threads) thread.join();
}

int failures = 0;

void expect(bool holds, const char* what, int64_t rows, int64_t dim, int64_t rank) {
  if (holds) return;
  std::printf("%s: %ld rows, dim %ld, rank %ld\n", what, long(rows), long(dim), long(rank));
  ++failures;
}

template <typename Row, typename Number>
void check(leace_fast_dtype dtype, double tolerance, int64_t rows, int64_t dim, int64_t rank) {
  const int64_t erasers = 3, apart = dim + 5, size = rows == 0 ? 0 : (rows - 1) * apart + dim;
  const auto x = numbers<Row>(size, 1), residual = numbers<Row>(size, 2);
  const auto left_t = numbers<Number>(erasers * rank * dim, 3, 0.1);
  const auto right = numbers<Number>(erasers * rank * dim, 4, 0.1);
  const auto mean = numbers<Number>(erasers * dim, 5), weight = numbers<Number>(dim, 6);
  std::unique_ptr<int64_t[]> index(new int64_t[rows]);
  for (int64_t row = 0; row < rows; ++row) index[row] = (row * 7) % (erasers + 1) - 1;
  leace_fast_factors factors{left_t.get(), right.get(), mean.get(), dim, rank, erasers, nullptr};
  const int64_t bytes = sizeof(Row) == 2 ? leace_fast_packed_size(dim, rank, erasers) : 0;
  const std::unique_ptr<void, Free> packed(std::aligned_alloc(64, bytes));
  if (bytes > 0) leace_fast_pack(&factors, packed.get());
  const leace_fast_norm norm{1, weight.get(), weight.get(), 1e-5, 1.0};

  const auto erased = [&](std::vector<double> row, int64_t number) {
    std::vector<double> out(row);
    double largest = 1;
    for (int64_t j = 0; number >= 0 && j < rank; ++j) {
      const int64_t at = (number * rank + j) * dim;
      double coordinate = 0;
      for (int64_t i = 0; i < dim; ++i) coordinate += (row[i] - mean[number * dim + i]) * right[at + i];
      for (int64_t i = 0; i < dim; ++i) out[i] -= coordinate * left_t[at + i];
      largest += std::fabs(coordinate);
    }
    out.push_back(largest);
    return out;
  };
  const auto agree = [&](const Row* y, const std::vector<double>& truth) {
    for (int64_t i = 0; i < dim; ++i)
      if (!(std::fabs(to_double(y[i]) - truth[i]) <= tolerance * (truth[dim] + std::fabs(truth[i])))) return false;
    return true;
  };

  for (const int way : {0, 1, 2, 3}) {
    const bool indexed = way & 1;
    if (way & 2 && bytes == 0) continue;
    factors.packed = way & 2 ? packed.get() : nullptr;
    for (const leace_fast_parallel_for threads : {leace_fast_parallel_for(nullptr), &on_threads}) {
      std::unique_ptr<Row[]> y(new Row[size]);
      const int64_t* names = indexed ? index.get() : nullptr;
      expect(leace_fast_project(dtype, x.get(), apart, y.get(), apart, rows, &factors, names, threads) == LEACE_FAST_OK,
             "status", rows, dim, rank);
      for (int64_t row = 0; row < rows; ++row) {
        std::vector<double> values(dim);
        for (int64_t i = 0; i < dim; ++i) values[i] = to_double(x[row * apart + i]);
        expect(agree(y.get() + row * apart, erased(values, indexed ? index[row] : 0)), "project", rows, dim, rank);
      }
      std::unique_ptr<Row[]> in_place(new Row[size]);
      if (size) std::memcpy(in_place.get(), x.get(), size * sizeof(Row));
      leace_fast_project(dtype, in_place.get(), apart, in_place.get(), apart, rows, &factors, names, threads);
      for (int64_t row = 0; row < rows; ++row)
        expect(std::memcmp(in_place.get() + row * apart, y.get() + row * apart, dim * sizeof(Row)) == 0, "in place",
               rows, dim, rank);

      std::unique_ptr<Row[]> summed(new Row[size]);
      expect(leace_fast_add_norm_project(dtype, x.get(), apart, residual.get(), apart, summed.get(), apart, y.get(),
                                         apart, rows, &norm, &factors, names, threads) == LEACE_FAST_OK,
             "status", rows, dim, rank);
      for (int64_t row = 0; row < rows; ++row) {
        std::vector<double> values(dim);
        double middle = 0, square = 0;
        for (int64_t i = 0; i < dim; ++i) middle += (values[i] = to_double(summed[row * apart + i])) / dim;
        for (double& value : values) square += (value - middle) * (value - middle) / dim;
        for (int64_t i = 0; i < dim; ++i)
          values[i] = (values[i] - middle) / std::sqrt(square + 1e-5) * (weight[i] + 1) + weight[i];
        // A row of equal numbers is all rounding, enlarged.
        if (dim <= 2) continue;
        expect(agree(y.get() + row * apart, erased(values, indexed ? index[row] : 0)), "norm", rows, dim, rank);
      }
    }
  }
}

}  // namespace

int main() {
  for (const int64_t rows : {0, 1, 3, 6, 13, 37})
    for (const int64_t dim : {1, 7, 16, 17, 1100})
      for (const int64_t rank : {0, 1, 5, 8, 70}) {
        check<float, float>(LEACE_FAST_FLOAT32, 2e-5, rows, dim, rank);
        check<double, double>(LEACE_FAST_FLOAT64, 1e-12, rows, dim, rank);
        check<bfloat16, float>(LEACE_FAST_BFLOAT16, 5e-3, rows, dim, rank);
        check<float16, float>(LEACE_FAST_FLOAT16, 1e-3, rows, dim, rank);
      }
  std::printf("%s: %d failures\n", leace_fast_instruction_set(), failures);
  return failures != 0;
}
