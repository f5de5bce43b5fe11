// Second moments by tiles of the lower triangle, for each instruction set; see moments.h.
#include "moments.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "../common/scratch.h"
#include "panels.h"

#ifdef LEACE_FAST_X86
#include <immintrin.h>
#endif

namespace leace_fast::moments {
namespace {

// Rows of a run, which are summed in float32 before they go to float64: in vectors; on the matrix units, of float32
// rows and of 16-bit rows.
constexpr int64_t VECTOR_DEPTH = 256, FLOAT_DEPTH = 512, SHORT_DEPTH = 1024;
// How far off zero a column is centred there, in standard deviations: the error grows with the square of it, and rows
// that stay bfloat16 are multiplied twice as fast by AVX512-BF16.
constexpr double NEAR = 0.5, NEAR_PAIRS = 1;
// Sums of squares that float32 can hold the terms of.
constexpr double TINY_SQUARE = 1e-30, HUGE_SQUARE = 1e34;

using cpu::bits_as;

[[noreturn]] void no_kernels() {
  throw std::invalid_argument("the instruction set has number 0, expected a later one: the baseline has no kernels for sums");
}

// Branch-free, so that loops over them vectorise.
inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
inline float widen(float16 x) {  // a finite number
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;  // in place, but for the bias of the exponent
  return bits_as<float>(bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f) | uint32_t(x.bits & 0x8000u) << 16);
}

#ifdef LEACE_FAST_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int LANES = 8, SLICE = 4;
#include "rows.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")
namespace avx512 {
constexpr int LANES = 16, SLICE = 8;
#include "rows.inl"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // of the intrinsics' own headers, as the next
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")
namespace avx512bf16 {
#include "loads.inl"
#include "pairs.inl"
}  // namespace avx512bf16
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")
namespace amx {
using cpu::Constant;
#include "loads.inl"
#include "../common/tiles.inl"
#include "amx.inl"
}  // namespace amx
#pragma GCC pop_options
#pragma GCC diagnostic pop

template <typename Row>
const VectorKernels<Row>& vector_kernels(InstructionSet set) {
  if (set >= InstructionSet::AVX512) return avx512::kernels<Row>;
  if (set >= InstructionSet::AVX2) return avx2::kernels<Row>;
  no_kernels();
}

#include "packed.inl"

// Where to centre a column: at zero where its mean is no more than `near` standard deviations off, so that rows of few
// digits keep these and no more; else at the mean, to a few digits of the deviation, for the same reason.
float centre_of(double mean, double variance, double near) {
  if (mean * mean <= near * near * variance) return 0.0f;
  if (variance <= 0) return float(mean);
  const double step = std::exp2(std::floor(std::log2(variance) / 2) - 3);
  return step > std::abs(mean) * 0x1p-24 ? float(std::nearbyint(mean / step) * step) : float(mean);
}

bool in_range(double squares, double mean) {
  return squares < HUGE_SQUARE && (squares >= TINY_SQUARE || squares == 0 || std::abs(mean) > 1e-7);
}

// Weights are scaled by a power of four, so that their roots are near one.
double scale_of(const double* weight, int64_t count) {
  if (weight == nullptr) return 1;
  return std::exp2(2 * std::floor(std::log2(*std::max_element(weight, weight + count)) / 2));
}

// Sets what columns are centred at and where the shift stands to their means; false where squares leave the range of
// float32.
template <typename Row>
bool centre_columns(Block<Row>& block, const double* shift, const ColumnSums& of_rows, double total, double scale,
                    InstructionSet set, Centring& centring) {
  const bool pairs = std::is_same_v<Row, bfloat16> && block.tries_pairs(set);
  for (int64_t i = 0; i < block.rows.dim; ++i) {
    const double mean = of_rows.total[i] / total;  // less the shift
    const double centre =
        centre_of(mean + shift[i], of_rows.squares[i] / total - mean * mean, pairs ? NEAR_PAIRS : NEAR);
    const double by = centre - shift[i];
    const double squares = of_rows.squares[i] + by * (total * by - 2 * of_rows.total[i]);
    if (!in_range(squares / scale, centre)) return false;
    block.centre[i] = float(centre);
    centring.mean[i] = mean;
    centring.weighted_mean[i] = of_rows.total[i];
  }
  return true;
}
#endif

}  // namespace

InstructionSet with_kernels(int64_t number) {
  const InstructionSet set = cpu::instruction_set(number);
  if (set == InstructionSet::BASELINE) no_kernels();
  return set;
}

template <typename Row>
bool all_finite(const Rows<Row>& rows, InstructionSet set) {
#ifdef LEACE_FAST_X86
  return vector_kernels<Row>(set).finite(rows);
#else
  no_kernels();
#endif
}

template <typename Row>
void add_class_sums(const Rows<Row>& rows, const int64_t* labels, const double* shift, double* sums,
                    const ColumnSums& of_block, int64_t begin, int64_t end, InstructionSet set) {
#ifdef LEACE_FAST_X86
  vector_kernels<Row>(set).class_sums(rows, labels, shift, sums, of_block, begin, end);
#else
  no_kernels();
#endif
}

template <typename Row>
bool add_second_moment(const Rows<Row>& rows, const double* shift, const ColumnSums& of_rows, double* second,
                       int64_t second_stride, InstructionSet set, const Parallel& parallel) {
#ifdef LEACE_FAST_X86
  const double scale = scale_of(rows.weight, rows.count);
  double total = rows.weight == nullptr ? double(rows.count) : 0;
  const int64_t padded = panels_of(rows.dim) * WIDTH;
  Block<Row> block{rows, std::vector<float>(padded), {}};
  for (int64_t r = 0; rows.weight != nullptr && r < rows.count; ++r) {
    block.root.push_back(float(std::sqrt(rows.weight[r] / scale)));
    total += rows.weight[r];
  }
  Centring centring(padded);
  if (!centre_columns(block, shift, of_rows, total, scale, set, centring)) return false;

  Packed<Row> packed(block, set);
  packed.pack(parallel, centring.rest.data());
  for (int64_t i = 0; i < rows.dim; ++i) {
    if (packed.exact(i / WIDTH)) centring.rest[i] = of_rows.total[i] - total * (block.centre[i] - shift[i]);
    centring.rest[i] *= scale;
    centring.negative_rest[i] = -centring.rest[i] / total;
  }

  const std::vector<Tile> tiles = lower_tiles(rows.dim);
  const VectorKernels<Row>& vectors = vector_kernels<Row>(set);
  parallel(int64_t(tiles.size()), rows.count * WIDTH * WIDTH / 8, [&](int64_t begin, int64_t end) {
    alignas(64) float product[WIDTH * WIDTH];
    static thread_local cpu::Scratch kept;
    auto* sums = static_cast<double*>(kept.at_least(GROUP * GROUP * WIDTH * WIDTH * int64_t(sizeof(double))));
    const auto sums_of = [&](int64_t t) { return sums + t * WIDTH * WIDTH; };
    amx::Tiles tiles_of_thread;
    if (set == InstructionSet::AMX) tiles_of_thread.set_rows(amx::TILE_ROWS);
    for (int64_t first = begin, next; first < end; first = next) {
      for (next = first + 1; next < end && tiles[next].group == tiles[first].group;) ++next;
      for (int64_t k = 0; k < packed.runs(); ++k)
        for (int64_t t = first; t < next; ++t) {
          packed.multiply(k, tiles[t].row / WIDTH, tiles[t].column / WIDTH, product);
          vectors.add_product(product, k == 0, sums_of(t - first));
        }
      for (int64_t t = first; t < next; ++t)
        vectors.add_tile(sums_of(t - first), scale, centring, tiles[t], second, second_stride);
    }
  });
  return true;
#else
  no_kernels();
#endif
}

#define LEACE_FAST_INSTANTIATE(Row)                                                                                  \
  template bool all_finite(const Rows<Row>&, InstructionSet);                                                        \
  template void add_class_sums(const Rows<Row>&, const int64_t*, const double*, double*, const ColumnSums&, int64_t, \
                               int64_t, InstructionSet);                                                             \
  template bool add_second_moment(const Rows<Row>&, const double*, const ColumnSums&, double*, int64_t,              \
                                  InstructionSet, const Parallel&);
LEACE_FAST_INSTANTIATE(float)
LEACE_FAST_INSTANTIATE(bfloat16)
LEACE_FAST_INSTANTIATE(float16)

}  // namespace leace_fast::moments
