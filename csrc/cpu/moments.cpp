// Second moments by tiles of the lower triangle, for each instruction set; see moments.h.
#include "moments.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "features.h"
#include "scratch.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define LEACE_FAST_X86 1
#include <immintrin.h>
#endif

namespace leace_fast::moments {
namespace {

constexpr int64_t WIDTH = 32;  // columns of a panel, and both sides of a tile of the product
constexpr int64_t GROUP = 8;   // panels whose products with as many others are formed together, out of the cache
// Rows that are summed one by one: longer runs would round equal rows the same way too often.
constexpr int64_t BLOCK_ROWS = 32;
constexpr int PARTS = 3;  // bfloat16 numbers whose sum is a float32 number
// Rows of a run, which are summed in float32 before they go to float64: in vectors; on the matrix units, of float32 rows
// and of 16-bit rows.
constexpr int64_t VECTOR_DEPTH = 256, FLOAT_DEPTH = 512, SHORT_DEPTH = 1024;
// How far off zero a column is centred there, in standard deviations: the error grows with the square of it, and rows that
// stay bfloat16 are multiplied twice as fast by AVX512-BF16.
constexpr double NEAR = 0.5, NEAR_PAIRS = 1;
// Sums of squares that float32 can hold the terms of.
constexpr double TINY_SQUARE = 1e-30, HUGE_SQUARE = 1e34;

// The columns of a panel in rows that become (x - centre) root; `root` may be null, which stands for ones.
template <typename Row>
struct Source {
  const Row* x;
  int64_t stride, columns;
  const float *centre, *root;

  // In how many bfloat16 parts its numbers are likely to fall.
  int least_parts() const {
    if (std::is_same_v<Row, float>) return 3;
    bool whole = std::is_same_v<Row, bfloat16> && root == nullptr;
    for (int64_t i = 0; i < columns; ++i) whole = whole && centre[i] == 0.0f;
    return whole ? 1 : 2;
  }
};

// A tile of the product: its first row and column, how many of both are inside the matrix, and which tiles are formed
// together.
struct Tile {
  int64_t row, column, rows, columns, group;
};

// What takes a product about any centre to one about the shift: second += rest negative_rest' + mean weighted_mean'.
struct Centring {
  const double *rest, *negative_rest, *mean, *weighted_mean;
};

using cpu::bits_as;

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
#include "moments_rows.h"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")
namespace avx512 {
constexpr int LANES = 16, SLICE = 8;
#include "moments_rows.h"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of the intrinsics' own headers
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")
namespace avx512bf16 {
#include "moments_loads.h"
#include "moments_pairs.h"
}  // namespace avx512bf16
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")
namespace amx {
#include "moments_loads.h"
#include "moments_amx.h"
}  // namespace amx
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

Level find_level() {
#ifdef LEACE_FAST_X86
  if (cpu::has_instruction_set("amx")) return Level::AMX;
  if (cpu::has_instruction_set("avx512bf16")) return Level::AVX512BF16;
  if (cpu::has_instruction_set("avx512")) return Level::AVX512;
  if (cpu::has_instruction_set("avx2")) return Level::AVX2;
#endif
  return Level::NONE;
}

// The lower triangle, group by group: GROUP panels by as many others, which stay in the cache.
std::vector<Tile> lower_tiles(int64_t dim) {
  std::vector<Tile> tiles;
  const int64_t panels = (dim + WIDTH - 1) / WIDTH;
  const auto inside = [&](int64_t panel) { return std::min(WIDTH, dim - panel * WIDTH); };
  for (int64_t rows = 0; rows < panels; rows += GROUP)
    for (int64_t columns = 0; columns <= rows; columns += GROUP)
      for (int64_t j = columns; j < std::min(columns + GROUP, panels); ++j)
        for (int64_t i = std::max(rows, j); i < std::min(rows + GROUP, panels); ++i)
          tiles.push_back({i * WIDTH, j * WIDTH, inside(i), inside(j), rows * panels + columns});
  return tiles;
}

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

}  // namespace

Level best_level() {
  static const Level level = find_level();
  return level;
}

template <typename Row>
bool all_finite(const Rows<Row>& rows, Level level) {
#ifdef LEACE_FAST_X86
  return (level == Level::AVX2 ? avx2::finite<Row> : avx512::finite<Row>)(rows);
#else
  return false;
#endif
}

template <typename Row>
void add_class_sums(const Rows<Row>& rows, const int64_t* labels, const double* shift, double* sums,
                    const ColumnSums& of_block, int64_t begin, int64_t end, Level level) {
#ifdef LEACE_FAST_X86
  const auto add = level == Level::AVX2 ? avx2::class_sums<Row> : avx512::class_sums<Row>;
  add(rows, labels, shift, sums, of_block, begin, end);
#endif
}

template <typename Row>
bool add_second_moment(const Rows<Row>& rows, const double* shift, const ColumnSums& of_rows, double* second,
                       int64_t second_stride, Level level, const Parallel& parallel) {
#ifdef LEACE_FAST_X86
  const int64_t dim = rows.dim, panels = (dim + WIDTH - 1) / WIDTH, padded = panels * WIDTH;
  // Weights are scaled by a power of four, so that their roots are near one.
  std::vector<float> root;
  double total = double(rows.count), scale = 1;
  if (rows.weight != nullptr) {
    scale = std::exp2(2 * std::floor(std::log2(*std::max_element(rows.weight, rows.weight + rows.count)) / 2));
    root.resize(rows.count);
    total = 0;
    for (int64_t r = 0; r < rows.count; ++r) {
      root[r] = float(std::sqrt(rows.weight[r] / scale));
      total += rows.weight[r];
    }
  }
  std::vector<double> vectors(4 * padded);
  double *rest = vectors.data(), *negative_rest = rest + padded, *mean = negative_rest + padded,
         *weighted_mean = mean + padded;
  const bool amx = level == Level::AMX, wide = level != Level::AVX2;
  const bool tries_pairs = level == Level::AVX512BF16 && rows.weight == nullptr;
  const double near = tries_pairs && std::is_same_v<Row, bfloat16> ? NEAR_PAIRS : NEAR;
  std::vector<float> centre(padded);
  for (int64_t i = 0; i < dim; ++i) {
    mean[i] = of_rows.total[i] / total;  // less the shift
    weighted_mean[i] = of_rows.total[i];
    centre[i] = centre_of(mean[i] + shift[i], of_rows.squares[i] / total - mean[i] * mean[i], near);
    const double by = centre[i] - shift[i];
    const double squares = of_rows.squares[i] + by * (total * by - 2 * of_rows.total[i]);
    if (!in_range(squares / scale, centre[i])) return false;
  }

  const int64_t run = std::min(!amx ? VECTOR_DEPTH : sizeof(Row) == 4 ? FLOAT_DEPTH : SHORT_DEPTH, rows.count);
  const int64_t runs = (rows.count + run - 1) / run;
  const auto rows_of = [&](int64_t k) { return std::min(run, rows.count - k * run); };
  // All runs of all panels, the panels of a run side by side: for vectors as float32 numbers, as pairs of bfloat16 ones,
  // or both; for the matrix units in two forms.
  const int64_t bytes = amx ? 2 * amx::Layout(run).form : run * WIDTH * int64_t(sizeof(float));
  const int64_t pair_bytes = (run + 1) / 2 * WIDTH * int64_t(sizeof(uint32_t));
  const int64_t all = runs * panels * bytes, all_pairs = tries_pairs ? runs * panels * pair_bytes : 0;
  static thread_local cpu::Scratch kept;  // fresh pages cost more than the sums that go into them
  auto* packed_pairs = static_cast<char*>(kept.at_least(all_pairs + (amx ? 2 * all : all)));
  char* packed = packed_pairs + all_pairs;
  const auto floats_at = [&](int64_t k, int64_t p) { return reinterpret_cast<float*>(packed + (k * panels + p) * bytes); };
  const auto pairs_at = [&](int64_t k, int64_t p) {
    return reinterpret_cast<uint32_t*>(packed_pairs + (k * panels + p) * pair_bytes);
  };
  const auto left_at = [&](int64_t k, int64_t p) { return reinterpret_cast<uint16_t*>(packed + (k * panels + p) * bytes); };
  std::vector<int> parts(runs * panels);
  const auto panel = [&](int64_t p) {
    return Source<Row>{rows.x + p * WIDTH, rows.stride, std::min(WIDTH, dim - p * WIDTH), centre.data() + p * WIDTH,
                       root.empty() ? nullptr : root.data()};
  };
  const auto pack = [&](const auto& pack_run) {
    parallel(panels, rows.count * WIDTH, [&](int64_t begin, int64_t end) {
      for (int64_t k = 0; k < runs; ++k) pack_run(begin, end, k);
    });
  };
  std::vector<char> exact(panels, tries_pairs);
  if (tries_pairs)
    pack([&](int64_t begin, int64_t end, int64_t k) {
      avx512bf16::pack(panel, begin, end, k * run, rows_of(k), pairs_at(k, 0), pair_bytes / 4, exact.data());
    });
  if (amx)
    pack([&](int64_t begin, int64_t end, int64_t k) {
      amx::pack(panel, begin, end, k * run, rows_of(k), left_at(k, 0), bytes / 2, all / 2, parts.data() + k * panels, rest);
    });
  else if (std::count(exact.begin(), exact.end(), true) < panels)
    pack([&](int64_t begin, int64_t end, int64_t k) {
      (wide ? avx512::pack<decltype(panel)> : avx2::pack<decltype(panel)>)(panel, begin, end, k * run, rows_of(k),
                                                                          floats_at(k, 0), bytes / 4, rest);
    });
  for (int64_t i = 0; i < dim; ++i)
    if (exact[i / WIDTH]) rest[i] = of_rows.total[i] - total * (centre[i] - shift[i]);
  for (int64_t i = 0; i < dim; ++i) {
    rest[i] *= scale;
    negative_rest[i] = -rest[i] / total;
  }

  const std::vector<Tile> tiles = lower_tiles(dim);
  const Centring centring{rest, negative_rest, mean, weighted_mean};
  parallel(int64_t(tiles.size()), rows.count * WIDTH * WIDTH / 8, [&](int64_t begin, int64_t end) {
    alignas(64) float product[WIDTH * WIDTH];
    static thread_local cpu::Scratch kept_sums;
    auto* sums = static_cast<double*>(kept_sums.at_least(GROUP * GROUP * WIDTH * WIDTH * int64_t(sizeof(double))));
    const auto sums_of = [&](int64_t t) { return sums + t * WIDTH * WIDTH; };
    if (amx) amx::configure();
    for (int64_t first = begin, next; first < end; first = next) {
      for (next = first + 1; next < end && tiles[next].group == tiles[first].group;) ++next;
      for (int64_t k = 0; k < runs; ++k)
        for (int64_t t = first; t < next; ++t) {
          const int64_t i = tiles[t].row / WIDTH, j = tiles[t].column / WIDTH;
          if (amx)
            amx::multiply(left_at(k, i), parts[k * panels + i], left_at(k, j) + all / 2, parts[k * panels + j], rows_of(k),
                          product);
          else if (exact[i] && exact[j])
            avx512bf16::multiply(pairs_at(k, i), pairs_at(k, j), rows_of(k), product);
          else
            (wide ? avx512::multiply : avx2::multiply)(floats_at(k, i), floats_at(k, j), rows_of(k), product);
          (wide ? avx512::add_product : avx2::add_product)(product, k == 0, sums_of(t - first));
        }
      for (int64_t t = first; t < next; ++t)
        (wide ? avx512::add_tile : avx2::add_tile)(sums_of(t - first), scale, centring, tiles[t], second,
                                                   second_stride);
    }
    if (amx) amx::release();
  });
  return true;
#else
  return false;
#endif
}

#define LEACE_FAST_INSTANTIATE(Row)                                                                                  \
  template bool all_finite(const Rows<Row>&, Level);                                                                 \
  template void add_class_sums(const Rows<Row>&, const int64_t*, const double*, double*, const ColumnSums&, int64_t, \
                               int64_t, Level);                                                                      \
  template bool add_second_moment(const Rows<Row>&, const double*, const ColumnSums&, double*, int64_t, Level,       \
                                  const Parallel&);
LEACE_FAST_INSTANTIATE(float)
LEACE_FAST_INSTANTIATE(bfloat16)
LEACE_FAST_INSTANTIATE(float16)

}  // namespace leace_fast::moments
