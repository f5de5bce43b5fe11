// What the kernels of the second moment share: the lower triangle is formed tile by tile, from panels of WIDTH columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "moments.h"

namespace leace_fast::moments {

constexpr int64_t WIDTH = 32;  // columns of a panel, and both sides of a tile of the product
constexpr int64_t GROUP = 8;   // panels whose products with as many others are formed together, out of the cache
// Rows that are summed one by one: longer runs would round equal rows the same way too often.
constexpr int64_t BLOCK_ROWS = 32;
constexpr int PARTS = 3;  // bfloat16 numbers whose sum is a float32 number

inline int64_t panels_of(int64_t dim) { return (dim + WIDTH - 1) / WIDTH; }

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

// A block of rows, what each column is centred at, and the roots of the weights, if there are any.
template <typename Row>
struct Block {
  const Rows<Row>& rows;
  std::vector<float> centre, root;

  // Whether pairs of bfloat16 numbers are multiplied where panels hold nothing else.
  bool tries_pairs(InstructionSet set) const { return set == InstructionSet::AVX512BF16 && root.empty(); }

  Source<Row> panel(int64_t p) const {
    return {rows.x + p * WIDTH, rows.stride, std::min(WIDTH, rows.dim - p * WIDTH), centre.data() + p * WIDTH,
            root.empty() ? nullptr : root.data()};
  }
};

// A tile of the product: its first row and column, how many of both are inside the matrix, and which tiles are formed
// together.
struct Tile {
  int64_t row, column, rows, columns, group;
};

// The lower triangle, group by group: GROUP panels by as many others, which stay in the cache.
inline std::vector<Tile> lower_tiles(int64_t dim) {
  std::vector<Tile> tiles;
  const int64_t panels = panels_of(dim);
  const auto inside = [&](int64_t panel) { return std::min(WIDTH, dim - panel * WIDTH); };
  for (int64_t rows = 0; rows < panels; rows += GROUP)
    for (int64_t columns = 0; columns <= rows; columns += GROUP)
      for (int64_t j = columns; j < std::min(columns + GROUP, panels); ++j)
        for (int64_t i = std::max(rows, j); i < std::min(rows + GROUP, panels); ++i)
          tiles.push_back({i * WIDTH, j * WIDTH, inside(i), inside(j), rows * panels + columns});
  return tiles;
}

// What takes a product about any centre to one about the shift: second += rest negative_rest' + mean weighted_mean'.
struct Centring {
  explicit Centring(int64_t padded) : rest(padded), negative_rest(padded), mean(padded), weighted_mean(padded) {}
  std::vector<double> rest, negative_rest, mean, weighted_mean;
};

// What the vectors of one instruction set do: the functions of rows.inl.
template <typename Row>
struct VectorKernels {
  bool (*finite)(const Rows<Row>& rows);
  void (*class_sums)(const Rows<Row>& rows, const int64_t* labels, const double* shift, double* sums,
                     const ColumnSums& of_block, int64_t begin, int64_t end);
  void (*pack)(const Block<Row>& block, int64_t begin, int64_t end, int64_t first, int64_t count, float* packed,
               int64_t panel_size, double* rest);
  void (*multiply)(const float* a, const float* b, int64_t count, float* out);
  void (*add_product)(const float* product, bool begin, double* sums);
  void (*add_tile)(const double* sums, double scale, const Centring& centring, const Tile& tile, double* second,
                   int64_t stride);
};

}  // namespace leace_fast::moments
