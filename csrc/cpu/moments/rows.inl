// The loops of moments.cpp, included there inside the namespaces of instruction sets. Before it come LANES, floats in a
// vector, and SLICE, columns of a tile that one call of `multiply_slice` keeps in registers, two vectors wide.

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

inline Vector load(const float* from) {
  Vector lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <typename Row>
bool finite(const Rows<Row>& rows) {
  using Bits = std::conditional_t<sizeof(Row) == 4, uint32_t, uint16_t>;
  const uint32_t exponent = sizeof(Row) == 4 ? 0x7f800000u : std::is_same_v<Row, bfloat16> ? 0x7f80u : 0x7c00u;
  for (int64_t r = 0; r < rows.count; ++r) {
    const Row* row = rows.x + r * rows.stride;
    Bits found = 0;
    for (int64_t i = 0; i < rows.dim; ++i) found |= Bits((bits_as<Bits>(row[i]) & Bits(exponent)) == Bits(exponent));
    if (found) return false;
  }
  return true;
}

template <bool WEIGHTED, typename Row>
inline void add_row(const Row* __restrict x, double weight, const double* __restrict shift, double* __restrict sum,
                    double* __restrict total, double* __restrict squares, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double centred = double(widen(x[i])) - shift[i];
    const double weighted = WEIGHTED ? weight * centred : centred;
    sum[i] += weighted;
    total[i] += weighted;
    squares[i] += weighted * centred;
  }
}

template <typename Row>
void class_sums(const Rows<Row>& rows, const int64_t* labels, const double* shift, double* sums,
                const ColumnSums& of_block, int64_t begin, int64_t end) {
  constexpr int64_t AHEAD = 4;  // rows: a part of one is no stream to the processor
  for (int64_t r = 0; r < rows.count; ++r) {
    const Row* x = rows.x + r * rows.stride + begin;
    double *sum = sums + labels[r] * rows.dim + begin, *total = of_block.total + begin;
    double* squares = of_block.squares + begin;
    for (int64_t i = 0; i < end - begin; i += 64 / int64_t(sizeof(Row)))
      __builtin_prefetch(x + AHEAD * rows.stride + i);
    if (rows.weight == nullptr)
      add_row<false>(x, 1.0, shift + begin, sum, total, squares, end - begin);
    else
      add_row<true>(x, rows.weight[r], shift + begin, sum, total, squares, end - begin);
  }
}

// Packs rows first..first + count of panels begin..end: in float32, WIDTH columns of every row, row after row.
template <typename Row>
void pack(const Block<Row>& block, int64_t begin, int64_t end, int64_t first, int64_t count, float* packed,
          int64_t panel_size, double* rest) {
  for (int64_t row_block = 0; row_block < count; row_block += BLOCK_ROWS)
    for (int64_t p = begin; p < end; ++p) {
      const Source<Row> from = block.panel(p);
      double* sums = rest + p * WIDTH;
      for (int64_t r = row_block; r < std::min(row_block + BLOCK_ROWS, count); ++r) {
        const Row* __restrict x = from.x + (first + r) * from.stride;
        float* __restrict row = packed + p * panel_size + r * WIDTH;
        const float root = from.root == nullptr ? 1.0f : from.root[first + r];
        if (from.columns < WIDTH) std::fill_n(row, WIDTH, 0.0f);
        for (int64_t i = 0; i < from.columns; ++i) row[i] = (widen(x[i]) - from.centre[i]) * root;
        for (int64_t i = 0; i < WIDTH; ++i) sums[i] += double(row[i]) * root;
      }
    }
}

// out[i][j] += sum over rows of a[i] b[j], for SLICE values of i and two vectors of j.
inline void multiply_slice(const float* a, const float* b, int64_t count, float* out) {
  Vector sums[SLICE][2] = {};
  for (int64_t r = 0; r < count; ++r, a += WIDTH, b += WIDTH) {
    const Vector low = load(b), high = load(b + LANES);
#pragma GCC unroll 8
    for (int i = 0; i < SLICE; ++i) {
      sums[i][0] += a[i] * low;
      sums[i][1] += a[i] * high;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < SLICE; ++i) {
    const Vector low = load(out + i * WIDTH) + sums[i][0], high = load(out + i * WIDTH + LANES) + sums[i][1];
    std::memcpy(out + i * WIDTH, &low, sizeof low);
    std::memcpy(out + i * WIDTH + LANES, &high, sizeof high);
  }
}

void multiply(const float* a, const float* b, int64_t count, float* out) {
  std::fill_n(out, WIDTH * WIDTH, 0.0f);
  for (int64_t i = 0; i < WIDTH; i += SLICE)
    for (int64_t j = 0; j < WIDTH; j += 2 * LANES)
      for (int64_t r = 0; r < count; r += BLOCK_ROWS)
        multiply_slice(a + r * WIDTH + i, b + r * WIDTH + j, std::min(BLOCK_ROWS, count - r), out + i * WIDTH + j);
}

// Adds a product of some rows to sums in float64, or begins these.
void add_product(const float* __restrict product, bool begin, double* __restrict sums) {
  if (begin)
    for (int64_t i = 0; i < WIDTH * WIDTH; ++i) sums[i] = product[i];
  else
    for (int64_t i = 0; i < WIDTH * WIDTH; ++i) sums[i] += product[i];
}

// Adds a tile of the sums, and what centres it, to `second`.
void add_tile(const double* __restrict sums, double scale, const Centring& centring, const Tile& tile, double* second,
              int64_t stride) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    double* __restrict to = second + (tile.row + i) * stride + tile.column;
    const int64_t count = tile.row == tile.column ? i + 1 : tile.columns;
    const double rest = centring.rest[tile.row + i], mean = centring.mean[tile.row + i];
    const double* __restrict rest_j = centring.negative_rest.data() + tile.column;
    const double* __restrict mean_j = centring.weighted_mean.data() + tile.column;
    for (int64_t j = 0; j < count; ++j) to[j] += scale * sums[i * WIDTH + j] + (rest * rest_j[j] + mean * mean_j[j]);
  }
}

template <typename Row>
constexpr VectorKernels<Row> kernels{&finite<Row>, &class_sums<Row>, &pack<Row>, &multiply, &add_product, &add_tile};
