// The loops of `project`, included by project.cpp once for each instruction set, inside a namespace of that name: so
// there is no include guard, and no include.
//
// Rows go in blocks of four and ranks in blocks of four, so that each load of a factor serves four rows and each
// load of a row four ranks. Dot products are summed in a fixed number of lanes, in a fixed order, in every block:
// that is why a row comes out the same in any batch.

constexpr int BLOCK = 4;

template <typename Factor>
struct Lanes {
  static constexpr int count = 64 / sizeof(Factor);
  typedef Factor type __attribute__((vector_size(64)));
};

// The first `count` lanes; the others are zero.
template <typename Factor>
inline typename Lanes<Factor>::type load(const Factor* from, int64_t count) {
  typename Lanes<Factor>::type lanes = {};
  if (count == Lanes<Factor>::count)
    std::memcpy(&lanes, from, sizeof lanes);
  else
    std::memcpy(&lanes, from, count * sizeof(Factor));
  return lanes;
}

template <typename Factor>
inline void store(typename Lanes<Factor>::type lanes, Factor* to, int64_t count) {
  if (count == Lanes<Factor>::count)
    std::memcpy(to, &lanes, sizeof lanes);
  else
    std::memcpy(to, &lanes, count * sizeof(Factor));
}

template <typename Factor>
inline Factor sum(typename Lanes<Factor>::type lanes) {
  Factor parts[Lanes<Factor>::count];
  std::memcpy(parts, &lanes, sizeof lanes);
  for (int width = Lanes<Factor>::count / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}

// out[r][j] = rows[r] . factor[j]
template <int ROWS, int RANKS, typename Factor>
inline void dot_products(const Factor* rows, const Factor* factor, int64_t dim, Factor* out,
                                    int64_t out_stride) {
  using Vector = typename Lanes<Factor>::type;
  constexpr int LANES = Lanes<Factor>::count;
  Vector sums[ROWS][RANKS] = {};
  for (int64_t i = 0; i < dim; i += LANES) {
    const int64_t count = std::min<int64_t>(LANES, dim - i);
    Vector row[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) row[r] = load(rows + r * dim + i, count);
#pragma GCC unroll 4
    for (int j = 0; j < RANKS; ++j) {
      const Vector column = load(factor + j * dim + i, count);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) sums[r][j] += row[r] * column;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < RANKS; ++j) out[r * out_stride + j] = sum<Factor>(sums[r][j]);
}

// out[r] += sum_j weights[r][j] * factor[j]
template <int ROWS, int RANKS, typename Factor>
inline void add_combination(const Factor* weights, int64_t weight_stride, const Factor* factor, int64_t dim,
                            Factor* out) {
  using Vector = typename Lanes<Factor>::type;
  constexpr int LANES = Lanes<Factor>::count;
  for (int64_t i = 0; i < dim; i += LANES) {
    const int64_t count = std::min<int64_t>(LANES, dim - i);
    Vector sums[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) sums[r] = load(out + r * dim + i, count);
#pragma GCC unroll 4
    for (int j = 0; j < RANKS; ++j) {
      const Vector row = load(factor + j * dim + i, count);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) sums[r] += weights[r * weight_stride + j] * row;
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) store(sums[r], out + r * dim + i, count);
  }
}

template <int ROWS, typename Row, typename Factor>
inline void project_block(const Row* x, Row* y, const Factors<Factor>& factors, Factor* work,
                                     Factor* coordinates) {
  const int64_t dim = factors.dim, rank = factors.rank;
  for (int r = 0; r < ROWS; ++r)
    for (int64_t i = 0; i < dim; ++i) work[r * dim + i] = widen(x[r * dim + i]);
  if (factors.mean != nullptr)
    for (int r = 0; r < ROWS; ++r)
      for (int64_t i = 0; i < dim; ++i) work[r * dim + i] -= factors.mean[i];

  int64_t j = 0;
  for (; j + BLOCK <= rank; j += BLOCK)
    dot_products<ROWS, BLOCK>(work, factors.right + j * dim, dim, coordinates + j, rank);
  for (; j < rank; ++j) dot_products<ROWS, 1>(work, factors.right + j * dim, dim, coordinates + j, rank);

  std::fill_n(work, ROWS * dim, Factor(0));
  for (j = 0; j + BLOCK <= rank; j += BLOCK)
    add_combination<ROWS, BLOCK>(coordinates + j, rank, factors.left_t + j * dim, dim, work);
  for (; j < rank; ++j) add_combination<ROWS, 1>(coordinates + j, rank, factors.left_t + j * dim, dim, work);

  for (int64_t i = 0; i < ROWS * dim; ++i) y[i] = Narrow<Row>::from(widen(x[i]) - work[i]);
}

template <typename Row, typename Factor>
inline void project_rows(const Row* x, Row* y, int64_t rows, const Factors<Factor>& factors) {
  const int64_t dim = factors.dim;
  std::vector<Factor> scratch(BLOCK * (dim + factors.rank));
  Factor* work = scratch.data();
  Factor* coordinates = work + BLOCK * dim;
  int64_t row = 0;
  for (; row + BLOCK <= rows; row += BLOCK)
    project_block<BLOCK>(x + row * dim, y + row * dim, factors, work, coordinates);
  for (; row < rows; ++row) project_block<1>(x + row * dim, y + row * dim, factors, work, coordinates);
}
