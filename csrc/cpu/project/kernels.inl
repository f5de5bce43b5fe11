// The kernels of one instruction set (see kernels.h): included, after its `#pragma GCC target`, by the file of its
// name, which defines
//
//     INSTRUCTION_SET   its name
//     VECTOR_BYTES      of a register
//     TILE_ROWS, TILE_RANKS, TILE_VECTORS   what its registers hold: rows x ranks and rows x vectors of sums
//     ONE_ROW_RANKS     the ranks of a row alone: sums enough to wait for none of them
//     SMALL_FACTORS     bytes of `left` or `right` up to which a core's own cache holds both, and the rows

namespace leace_fast::cpu {
namespace INSTRUCTION_SET {
namespace {

#include "../common/lanes.inl"
#include "products.inl"

// Rows whose factors are small go through tile by tile. Larger factors are read from the cache once for a chunk of
// rows, one segment of columns after another.
constexpr int64_t CHUNK_BYTES = 768 << 10;
// Columns of `left` that serve all rows of a chunk before the next: whole tiles.
constexpr int64_t TILE_COLUMNS = TILE_VECTORS * Lanes<float>::count, PANEL = 512 / TILE_COLUMNS * TILE_COLUMNS;

// Of so many rows, those that the next tiles hold: the last tiles share what is left, for small ones are slow.
INLINE int64_t rows_of_tile(int64_t left) {
  return left <= TILE_ROWS ? left : left < 2 * TILE_ROWS ? (left + 1) / 2 : TILE_ROWS;
}

// Calls work(integer constant ROWS, first row) for `rows` <= ROWS rows.
template <int ROWS, typename Work>
INLINE void block(int64_t rows, int64_t row, const Work& work) {
  if (rows == ROWS) return work(Constant<ROWS>{}, row);
  if constexpr (ROWS > 1) block<ROWS - 1>(rows, row, work);
}

// The same for blocks that cover begin..end.
template <typename Work>
INLINE void blocks(int64_t begin, int64_t end, const Work& work) {
  for (int64_t row = begin, rows; row < end; row += rows) {
    rows = rows_of_tile(end - row);
    block<TILE_ROWS>(rows, row, work);
  }
}

template <int ROWS, typename Row>
INLINE void pointers(RowView<Row> rows, int64_t row, Row** to) {
  UNROLL for (int r = 0; r < ROWS; ++r) to[r] = rows[row + r];
}

template <typename In, typename Number>
void coordinates(RowView<const In> x, int64_t begin, int64_t end, const Eraser<Number>& eraser, int64_t first,
                 int64_t last, Number* out) {
  const int64_t ranks = last - first, dim = eraser.dim;
  auto* sums = scratch<Vector<Number>>((end - begin) * ranks * VECTOR_BYTES + TILE_ROWS * APART * sizeof(Number));
  auto* segment = reinterpret_cast<Number*>(sums + (end - begin) * ranks);
  for (int64_t column = 0; column < dim; column += SEGMENT) {
    const int64_t columns = dim - column < SEGMENT ? dim - column : SEGMENT;
    blocks(begin, end, [&](auto count, int64_t row) INLINE_LAMBDA {
      constexpr int ROWS = decltype(count)::value;
      const In* from[ROWS];
      pointers<ROWS>(x, row, from);
      Vector<Number>* to = sums + (row - begin) * ranks;
      const Number* right = eraser.right + first * dim + column;
      // For few ranks, rows are centred each time they are read, and not once for all.
      if (ranks <= (ROWS == 1 ? ONE_ROW_RANKS : 2 * TILE_RANKS))
        return multiply<ROWS>(Centred<In, Number>{from, eraser.mean, column}, right, dim, columns, column == 0, ranks,
                              to);
      centre<ROWS>(from, eraser.mean, column, columns, segment);
      multiply<ROWS>(Segment<Number>{segment}, right, dim, columns, column == 0, ranks, to);
    });
  }
  for (int64_t row = 0; row < end - begin; ++row) {
    const Vector<Number>* from = sums + row * ranks;
    Number* to = out + row * eraser.rank + first;
    int64_t j = 0;
    for (; j + 4 <= ranks; j += 4) sum4<Number>(from + j, to + j);
    for (; j < ranks; ++j) to[j] = sum<Number>(from[j]);
  }
}

// `subtract`, while the rows end..limit that come next are asked for.
template <typename In, typename Out, typename Number>
INLINE void subtract_before(int64_t limit, RowView<const In> x, RowView<Out> y, int64_t begin, int64_t end,
                            const Eraser<Number>& eraser, int64_t first, int64_t last, const Number* coordinates) {
  if (end - begin == 1 && eraser.rank > 0)  // the last part of the ranks writes y
    return subtract_row(x[begin], y[begin], coordinates, eraser.left_t, eraser.dim, eraser.rank, first, last);
  for (int64_t column = first; column < last; column += PANEL) {
    const int64_t stop = last - column < PANEL ? last : column + PANEL;
    blocks(begin, end, [&](auto count, int64_t row) INLINE_LAMBDA {
      constexpr int ROWS = decltype(count)::value;
      const In* from[ROWS];
      Out* to[ROWS];
      pointers<ROWS>(x, row, from);
      pointers<ROWS>(y, row, to);
      // The rows that stand where these stand, in what comes next: the last one again where there are fewer.
      const In* ahead[ROWS];
      const int64_t next = row - begin + end;
      const bool more = next < limit;
      if (more) UNROLL for (int r = 0; r < ROWS; ++r) ahead[r] = x[next + r < limit ? next + r : limit - 1];
      subtract_columns<ROWS>(from, to, more ? ahead : nullptr, coordinates + (row - begin) * eraser.rank,
                             eraser.left_t, eraser.dim, eraser.rank, column, stop);
    });
  }
}

template <typename In, typename Out, typename Number>
void subtract(RowView<const In> x, RowView<Out> y, int64_t begin, int64_t end, const Eraser<Number>& eraser,
              int64_t first, int64_t last, const Number* coordinates) {
  subtract_before(end, x, y, begin, end, eraser, first, last, coordinates);
}

INLINE int64_t rows_of_chunk(int64_t row_bytes, int64_t rank) {
  if (row_bytes * rank <= SMALL_FACTORS) return TILE_ROWS;
  const int64_t fit = CHUNK_BYTES / row_bytes / TILE_ROWS;
  return TILE_ROWS * (fit < 1 ? 1 : fit > 8 ? 8 : fit);
}

template <typename Row>
void project(RowView<const Row> x, RowView<Row> y, int64_t begin, int64_t end, const Eraser<Compute<Row>>& eraser) {
  using Number = Compute<Row>;
  const int64_t chunk = rows_of_chunk(eraser.dim * sizeof(Number), eraser.rank);
  static thread_local Scratch kept;
  auto* weights = static_cast<Number*>(kept.at_least(chunk * eraser.rank * sizeof(Number)));
  for (int64_t row = begin, stop; row < end; row = stop) {
    stop = chunk == TILE_ROWS ? row + rows_of_tile(end - row) : row + chunk < end ? row + chunk : end;
    coordinates<Row>(x, row, stop, eraser, 0, eraser.rank, weights);
    subtract_before<Row, Row>(end, x, y, row, stop, eraser, 0, eraser.dim, weights);
  }
}

#include "norms.inl"

template <typename Row>
constexpr RowKernels<Row> row_kernels() {
  return {&project<Row>, &coordinates<Row, Compute<Row>>, &subtract<Row, Row, Compute<Row>>, &norm<Row>};
}

}  // namespace
}  // namespace INSTRUCTION_SET

#define LEACE_FAST_JOIN(a, b) a##b
#define LEACE_FAST_NAME(set) LEACE_FAST_JOIN(set, _kernels)
extern const Kernels LEACE_FAST_NAME(INSTRUCTION_SET);
const Kernels LEACE_FAST_NAME(INSTRUCTION_SET) = {
    INSTRUCTION_SET::row_kernels<float>(), INSTRUCTION_SET::row_kernels<double>(),
    INSTRUCTION_SET::row_kernels<bfloat16>(), INSTRUCTION_SET::row_kernels<float16>()};

}  // namespace leace_fast::cpu
