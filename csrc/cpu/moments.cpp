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
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace leace_fast::moments {
namespace {

constexpr int64_t WIDTH = 32;  // columns of a panel, and both sides of a tile of the product
constexpr int64_t GROUP = 8;   // panels whose products with as many others are formed together, out of the cache
// Rows that are summed one by one: longer runs would round equal rows the same way too often.
constexpr int64_t BLOCK_ROWS = 32;
constexpr int PARTS = 3;  // bfloat16 numbers whose sum is a float32 number
// Rows that are summed in float32 before they go to float64: in float32 vectors; on the matrix units, of float32 rows and
// of 16-bit rows.
constexpr int64_t VECTOR_DEPTH = 256, FLOAT_DEPTH = 512, SHORT_DEPTH = 1024;
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

// A tile of the product: its first row and column, and how many of both are inside the matrix.
struct Tile {
  int64_t row, column, rows, columns;
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
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")
namespace amx {
#include "moments_amx.h"
}  // namespace amx
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

Level find_level() {
#ifdef LEACE_FAST_X86
  if (cpu::has_instruction_set("amx") && amx::permitted()) return Level::AMX;
  if (cpu::has_instruction_set("avx512")) return Level::AVX512;
  if (cpu::has_instruction_set("avx2")) return Level::AVX2;
#endif
  return Level::NONE;
}

// The lower triangle, group by group, so that the panels of two groups stay in the cache.
std::vector<Tile> lower_tiles(int64_t dim) {
  std::vector<Tile> tiles;
  const int64_t panels = (dim + WIDTH - 1) / WIDTH;
  const auto inside = [&](int64_t panel) { return std::min(WIDTH, dim - panel * WIDTH); };
  for (int64_t rows = 0; rows < panels; rows += GROUP)
    for (int64_t columns = 0; columns <= rows; columns += GROUP)
      for (int64_t j = columns; j < std::min(columns + GROUP, panels); ++j)
        for (int64_t i = std::max(rows, j); i < std::min(rows + GROUP, panels); ++i)
          tiles.push_back({i * WIDTH, j * WIDTH, inside(i), inside(j)});
  return tiles;
}

// Where to centre a column: at zero where its mean is no more than half a standard deviation off, so that rows of few
// digits keep these and no more; else at the mean, to a few digits of the deviation, for the same reason.
float centre_of(double mean, double variance) {
  if (4 * mean * mean <= variance) return 0.0f;
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
void add_class_sums(const Rows<Row>& rows, const int64_t* labels, const double* shift, double* sums, int64_t chunk,
                    const ColumnSums& chunks, int64_t begin, int64_t end, Level level) {
#ifdef LEACE_FAST_X86
  const auto add = level == Level::AVX2 ? avx2::class_sums<Row> : avx512::class_sums<Row>;
  add(rows, labels, shift, sums, chunk, chunks, begin, end);
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
  std::vector<float> centre(padded);
  for (int64_t i = 0; i < dim; ++i) {
    mean[i] = of_rows.total[i] / total;  // less the shift
    weighted_mean[i] = of_rows.total[i];
    centre[i] = centre_of(mean[i] + shift[i], of_rows.squares[i] / total - mean[i] * mean[i]);
    const double by = centre[i] - shift[i];
    const double squares = of_rows.squares[i] + by * (total * by - 2 * of_rows.total[i]);
    if (!in_range(squares / scale, centre[i])) return false;
  }

  const bool amx = level == Level::AMX;
  const int64_t depth = std::min(!amx ? VECTOR_DEPTH : sizeof(Row) == 4 ? FLOAT_DEPTH : SHORT_DEPTH, rows.count);
  const int64_t bytes = amx ? 2 * 2 * amx::Layout(depth).form : depth * WIDTH * int64_t(sizeof(float));
  static thread_local cpu::Scratch kept;  // fresh pages cost more than the sums that go into them
  auto* packed = static_cast<char*>(kept.at_least(panels * bytes));
  std::vector<int> parts(panels);
  const auto panel = [&](int64_t p) {
    return Source<Row>{rows.x + p * WIDTH, rows.stride, std::min(WIDTH, dim - p * WIDTH), centre.data() + p * WIDTH,
                       root.empty() ? nullptr : root.data()};
  };
  const std::vector<Tile> tiles = lower_tiles(dim);
  const Centring centring{rest, negative_rest, mean, weighted_mean};
  const auto add_tile = level == Level::AVX2 ? avx2::add_tile : avx512::add_tile;

  for (int64_t first = 0; first < rows.count; first += depth) {
    const int64_t count = std::min(depth, rows.count - first);
    const bool last = first + count == rows.count;
    parallel(panels, count * WIDTH, [&](int64_t begin, int64_t end) {
      if (amx)
        amx::pack(panel, begin, end, first, count, reinterpret_cast<uint16_t*>(packed), bytes / 2, parts.data(), rest);
      else
        (level == Level::AVX512 ? avx512::pack<decltype(panel)> : avx2::pack<decltype(panel)>)(
            panel, begin, end, first, count, reinterpret_cast<float*>(packed), bytes / 4, rest);
    });
    if (last)
      for (int64_t i = 0; i < dim; ++i) {
        rest[i] *= scale;
        negative_rest[i] = -rest[i] / total;
      }
    parallel(int64_t(tiles.size()), count * WIDTH * WIDTH / 8, [&](int64_t begin, int64_t end) {
      alignas(64) float product[WIDTH * WIDTH];
      if (amx) amx::configure();
      for (int64_t t = begin; t < end; ++t) {
        const Tile& tile = tiles[t];
        for (int64_t i = 0; i < tile.rows; ++i)
          for (int64_t j = 0; j < tile.columns; j += 8)
            __builtin_prefetch(second + (tile.row + i) * second_stride + tile.column + j, 1);
        const int64_t i = tile.row / WIDTH, j = tile.column / WIDTH;
        const char *left = packed + i * bytes, *right = packed + j * bytes;
        if (amx)
          amx::multiply(reinterpret_cast<const uint16_t*>(left), parts[i], reinterpret_cast<const uint16_t*>(right),
                        parts[j], count, product);
        else
          (level == Level::AVX512 ? avx512::multiply : avx2::multiply)(
              reinterpret_cast<const float*>(left), reinterpret_cast<const float*>(right), count, product);
        add_tile(product, scale, centring, last, tile, second, second_stride);
      }
      if (amx) amx::release();
    });
  }
  return true;
#else
  return false;
#endif
}

#define LEACE_FAST_INSTANTIATE(Row)                                                                                  \
  template bool all_finite(const Rows<Row>&, Level);                                                                 \
  template void add_class_sums(const Rows<Row>&, const int64_t*, const double*, double*, int64_t, const ColumnSums&, \
                               int64_t, int64_t, Level);                                                             \
  template bool add_second_moment(const Rows<Row>&, const double*, const ColumnSums&, double*, int64_t, Level,       \
                                  const Parallel&);
LEACE_FAST_INSTANTIATE(float)
LEACE_FAST_INSTANTIATE(bfloat16)
LEACE_FAST_INSTANTIATE(float16)

}  // namespace leace_fast::moments
