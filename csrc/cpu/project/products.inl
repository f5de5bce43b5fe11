// The two products of an erasure, in register tiles.
//
// Included by kernels.inl inside the namespace of each instruction set.
//
// A coordinate, the product of a row with a row of `right`, is summed in the lanes of one vector (lane l takes the
// columns l, l + lanes, ...), and the lanes then by halves. A column of the result is summed rank by rank. However the
// loops around are cut, these orders stay: that is why a row has the same bits in any batch and on any thread.

// Columns that are centred and multiplied at a time: some rows of them stay in L1.
constexpr int64_t SEGMENT = 1024;
// From row to row of a segment: a power of two would crowd one set of the cache.
constexpr int64_t APART = SEGMENT + 64;

// The four sums of four vectors, in the order of `sum`.
template <typename Number>
INLINE void sum4(const Vector<Number>* lanes, Number* out) {
  for (int j = 0; j < 4; ++j) out[j] = sum<Number>(lanes[j]);
}

#if VECTOR_BYTES == 64
template <>
INLINE void sum4<float>(const Vector<float>* lanes, float* out) {
  const auto halves = [](Vector<float> a, Vector<float> b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  };
  const Vector<float> ab = halves(lanes[0], lanes[1]), cd = halves(lanes[2], lanes[3]);
  const Vector<float> fours =
      __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
      __builtin_shufflevector(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const Vector<float> twos =
      fours + __builtin_shufflevector(fours, fours, 2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15);
  const Vector<float> ones =
      twos + __builtin_shufflevector(twos, twos, 1, 0, 1, 0, 5, 4, 5, 4, 9, 8, 9, 8, 13, 12, 13, 12);
  out[0] = ones[0];
  out[1] = ones[4];
  out[2] = ones[8];
  out[3] = ones[12];
}
#elif VECTOR_BYTES == 32
template <>
INLINE void sum4<float>(const Vector<float>* lanes, float* out) {
  const auto halves = [](Vector<float> a, Vector<float> b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  };
  const Vector<float> ab = halves(lanes[0], lanes[1]), cd = halves(lanes[2], lanes[3]);
  const Vector<float> twos = __builtin_shufflevector(ab, cd, 0, 1, 4, 5, 8, 9, 12, 13) +
                             __builtin_shufflevector(ab, cd, 2, 3, 6, 7, 10, 11, 14, 15);
  for (int j = 0; j < 4; ++j) out[j] = twos[2 * j] + twos[2 * j + 1];
}
#endif

// Rows that `centre` has written.
template <typename Number>
struct Segment {
  const Number* rows;
  INLINE Vector<Number> read(int r, int64_t i) const { return load(rows + r * APART + i); }
  INLINE Vector<Number> read_part(int r, int64_t i, int64_t count) const { return load(rows + r * APART + i); }
};

// Rows that are centred when they are read, from the column `first` on; `mean` may be null.
template <typename In, typename Number>
struct Centred {
  const In* const* x;
  const Number* mean;
  int64_t first;
  INLINE Vector<Number> read(int r, int64_t i) const {
    const Vector<Number> row = load(x[r] + first + i);
    return mean == nullptr ? row : row - load(mean + first + i);
  }
  INLINE Vector<Number> read_part(int r, int64_t i, int64_t count) const {
    const Vector<Number> row = load_part(x[r] + first + i, count);
    return mean == nullptr ? row : row - load_part(mean + first + i, count);
  }
};

// sums[r * stride + j] += row r * right[j] over `columns`; from zero where `begins`. The rows of `right` are `dim`
// apart.
template <int ROWS, int RANKS, typename Number, typename Rows>
INLINE void multiply_tile(const Rows& rows, const Number* right, int64_t dim, int64_t columns, bool begins,
                          Vector<Number>* sums, int64_t stride) {
  constexpr int64_t LANES = Lanes<Number>::count;
  Vector<Number> tile[ROWS][RANKS];
  UNROLL for (int r = 0; r < ROWS; ++r)
      UNROLL for (int j = 0; j < RANKS; ++j) tile[r][j] = begins ? Vector<Number>{} : sums[r * stride + j];
  int64_t i = 0;
  for (; i + LANES <= columns; i += LANES) {
    Vector<Number> row[ROWS];
    UNROLL for (int r = 0; r < ROWS; ++r) row[r] = rows.read(r, i);
    UNROLL for (int j = 0; j < RANKS; ++j) {
      const Vector<Number> reader = load(right + j * dim + i);
      UNROLL for (int r = 0; r < ROWS; ++r) tile[r][j] += row[r] * reader;
    }
  }
  if (i < columns) {
    Vector<Number> row[ROWS];
    UNROLL for (int r = 0; r < ROWS; ++r) row[r] = rows.read_part(r, i, columns - i);
    UNROLL for (int j = 0; j < RANKS; ++j) {
      const Vector<Number> reader = load_part(right + j * dim + i, columns - i);
      UNROLL for (int r = 0; r < ROWS; ++r) tile[r][j] += row[r] * reader;
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r)
      UNROLL for (int j = 0; j < RANKS; ++j) sums[r * stride + j] = tile[r][j];
}

// The same for the `count` ranks from `right` on; sums are (ROWS, count). What no tile of RANKS holds is a smaller one.
template <int ROWS, int RANKS, typename Number, typename Rows>
INLINE void multiply(const Rows& rows, const Number* right, int64_t dim, int64_t columns, bool begins, int64_t count,
                     Vector<Number>* sums, int64_t j = 0) {
  for (; j + RANKS <= count; j += RANKS)
    multiply_tile<ROWS, RANKS>(rows, right + j * dim, dim, columns, begins, sums + j, count);
  if constexpr (RANKS > 1) {
    if (j < count) multiply<ROWS, RANKS - 1>(rows, right, dim, columns, begins, count, sums, j);
  }
}

template <int ROWS, typename Number, typename Rows>
NOINLINE void multiply(const Rows& rows, const Number* right, int64_t dim, int64_t columns, bool begins, int64_t count,
                       Vector<Number>* sums) {
  multiply<ROWS, ROWS == 1 ? ONE_ROW_RANKS : TILE_RANKS>(rows, right, dim, columns, begins, count, sums);
}

// y = x - coordinates * left_t over VECTORS vectors of columns from i on, of which the last holds `tail` numbers. The
// same columns of the rows `ahead` are asked for; it may be null.
template <int ROWS, int VECTORS, typename In, typename Out, typename Number>
INLINE void subtract_tile(const In* const* x, Out* const* y, const In* const* ahead, const Number* coordinates,
                          const Number* left_t, int64_t dim, int64_t rank, int64_t i, int64_t tail) {
  constexpr int64_t LANES = Lanes<Number>::count;
  if (ahead != nullptr)
    UNROLL for (int r = 0; r < ROWS; ++r)
        UNROLL for (int v = 0; v < VECTORS; v += 64 / (LANES * sizeof(In)))
            __builtin_prefetch(ahead[r] + i + v * LANES, 0, 2);
  const bool whole = tail == LANES;
  Vector<Number> tile[ROWS][VECTORS] = {};
  for (int64_t j = 0; j < rank; ++j) {
    Vector<Number> taker[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; ++v) {
      const Number* from = left_t + j * dim + i + v * LANES;
      taker[v] = VECTORS > 1 || whole ? load(from) : load_part(from, tail);
    }
    UNROLL for (int r = 0; r < ROWS; ++r)
        UNROLL for (int v = 0; v < VECTORS; ++v) tile[r][v] += coordinates[r * rank + j] * taker[v];
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int v = 0; v < VECTORS; ++v) {
      const In* from = x[r] + i + v * LANES;
      Out* to = y[r] + i + v * LANES;
      if (VECTORS > 1 || whole)
        store(load(from) - tile[r][v], to);
      else
        store_part(load_part(from, tail) - tile[r][v], to, tail);
    }
  }
}

// The same for the columns first..last; first is a multiple of the lanes, and so is last unless it is `dim`.
template <int ROWS, typename In, typename Out, typename Number>
NOINLINE void subtract_columns(const In* const* x, Out* const* y, const In* const* ahead, const Number* coordinates,
                               const Number* left_t, int64_t dim, int64_t rank, int64_t first, int64_t last) {
  constexpr int64_t LANES = Lanes<Number>::count;
  int64_t i = first;
  for (; i + TILE_VECTORS * LANES <= last; i += TILE_VECTORS * LANES)
    subtract_tile<ROWS, TILE_VECTORS>(x, y, ahead, coordinates, left_t, dim, rank, i, LANES);
  for (; i < last; i += LANES)
    subtract_tile<ROWS, 1>(x, y, ahead, coordinates, left_t, dim, rank, i, last - i < LANES ? last - i : LANES);
}

// The part of RANKS ranks in y = x - coordinates * left_t for whole vectors of the columns first..last of one row. It
// is added to `sums`, which begin with it where it is the first part; the last part writes y.
template <int RANKS, typename In, typename Out, typename Number>
INLINE void subtract_part(const In* x, Out* y, const Number* coordinates, const Number* left_t, int64_t dim,
                          int64_t first, int64_t last, bool is_first, bool is_last, Number* sums) {
  constexpr int64_t LANES = Lanes<Number>::count;
  for (int64_t i = first; i < last; i += LANES) {
    Vector<Number> sum = is_first ? Vector<Number>{} : load(sums + i - first);
    UNROLL for (int j = 0; j < RANKS; ++j) sum += coordinates[j] * load(left_t + j * dim + i);
    if (is_last)
      store(load(x + i) - sum, y + i);
    else
      store(sum, sums + i - first);
  }
}

// All parts from the rank j on. What no part of RANKS holds is a smaller one.
template <int RANKS, typename In, typename Out, typename Number>
INLINE void subtract_parts(const In* x, Out* y, const Number* coordinates, const Number* left_t, int64_t dim,
                           int64_t rank, int64_t first, int64_t last, Number* sums, int64_t j = 0) {
  for (; j + RANKS <= rank; j += RANKS)
    subtract_part<RANKS>(x, y, coordinates + j, left_t + j * dim, dim, first, last, j == 0, j + RANKS == rank, sums);
  if constexpr (RANKS > 1) {
    if (j < rank) subtract_parts<RANKS - 1>(x, y, coordinates, left_t, dim, rank, first, last, sums, j);
  }
}

// The same for the columns first..last of one row. Factors are read once, so a few ranks at a time are read as they
// lie: tiles would take a little of every rank, each time from other pages.
template <typename In, typename Out, typename Number>
INLINE void subtract_row(const In* x, Out* y, const Number* coordinates, const Number* left_t, int64_t dim,
                         int64_t rank, int64_t first, int64_t last) {
  constexpr int64_t LANES = Lanes<Number>::count;
  constexpr int RANKS = 4;  // more, of rows a power of two apart, would crowd one set of the cache
  alignas(64) Number sums[SEGMENT];
  const int64_t whole = first + (last - first) / LANES * LANES;
  for (int64_t i = first; i < whole; i += SEGMENT)
    subtract_parts<RANKS>(x, y, coordinates, left_t, dim, rank, i, i + SEGMENT < whole ? i + SEGMENT : whole, sums);
  if (whole < last)
    subtract_tile<1, 1>(&x, &y, static_cast<const In* const*>(nullptr), coordinates, left_t, dim, rank, whole,
                        last - whole);
}

// segment[r] = x[r] - mean over the columns first..first + columns, padded with zeros to whole vectors.
template <int ROWS, typename In, typename Number>
INLINE void centre(const In* const* x, const Number* mean, int64_t first, int64_t columns, Number* segment) {
  constexpr int64_t LANES = Lanes<Number>::count;
  int64_t i = 0;
  for (; i + LANES <= columns; i += LANES) {
    const Vector<Number> middle = mean == nullptr ? Vector<Number>{} : load(mean + first + i);
    UNROLL for (int r = 0; r < ROWS; ++r) store(load(x[r] + first + i) - middle, segment + r * APART + i);
  }
  if (i < columns) {
    const int64_t tail = columns - i;
    const Vector<Number> middle = mean == nullptr ? Vector<Number>{} : load_part(mean + first + i, tail);
    UNROLL for (int r = 0; r < ROWS; ++r)
        store(load_part(x[r] + first + i, tail) - middle, segment + r * APART + i);
  }
}
