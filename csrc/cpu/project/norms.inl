// The norms that stand before an erasure: residual, norm and erasure of a row while it is in the cache.
//
// Included by kernels.inl inside the namespace of each instruction set.

// Calls step(column, count) for vectors of columns; count is less than a whole one at the end only.
template <typename Number, typename Step>
INLINE void columns(int64_t dim, const Step& step) {
  constexpr int64_t LANES = Lanes<Number>::count;
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) step(i, Constant<LANES>{});
  if (i < dim) step(i, dim - i);
}

template <typename Row>
INLINE Vector<Compute<Row>> load_lanes(const Row* from, int64_t count) {
  return count == Lanes<Compute<Row>>::count ? load(from) : load_part(from, count);
}
template <typename Row>
INLINE void store_lanes(Vector<Compute<Row>> lanes, Row* to, int64_t count) {
  if (count == Lanes<Compute<Row>>::count)
    store(lanes, to);
  else
    store_part(lanes, to, count);
}

// normed = the norm of x + residual; that sum, rounded, goes to `summed` where there is a residual.
template <typename Row>
INLINE void norm_row(const Row* x, const Row* residual, Row* summed, const Norm<Compute<Row>>& norm, int64_t dim,
                     Compute<Row>* normed) {
  using Number = Compute<Row>;
  Vector<Number> total{}, squares{};
  columns<Number>(dim, [&](int64_t i, int64_t count) INLINE_LAMBDA {
    Vector<Number> lanes = load_lanes(x + i, count);
    if (residual != nullptr) {
      store_lanes(lanes + load_lanes(residual + i, count), summed + i, count);
      lanes = load_lanes<Row>(summed + i, count);
    }
    store_lanes(lanes, normed + i, count);
    total += lanes;
    squares += lanes * lanes;
  });
  Number middle = 0, rest = 0;  // the mean, and what its rounding left of it: more, the farther off zero a row is
  if (norm.layer) {
    middle = sum<Number>(total) / dim;
    total = squares = Vector<Number>{};
    columns<Number>(dim, [&](int64_t i, int64_t count) INLINE_LAMBDA {
      // Lanes past the end are zero, and must add nothing.
      const Vector<Number> lanes = load_lanes(normed + i, count) - middle;
      if (count == Lanes<Number>::count) {
        total += lanes;
        squares += lanes * lanes;
      } else {
        for (int64_t lane = 0; lane < count; ++lane) {
          total[lane] += lanes[lane];
          squares[lane] += lanes[lane] * lanes[lane];
        }
      }
    });
    rest = sum<Number>(total) / dim;
  }
  // One rounding only: an error here is in every number of the row.
  const double variance = static_cast<double>(sum<Number>(squares)) / dim - static_cast<double>(rest) * rest;
  const auto factor = static_cast<Number>(1 / std::sqrt((variance < 0 ? 0 : variance) + norm.eps));
  columns<Number>(dim, [&](int64_t i, int64_t count) INLINE_LAMBDA {
    Vector<Number> lanes = (load_lanes(normed + i, count) - middle - rest) * factor;
    if (norm.weight != nullptr) lanes *= load_lanes(norm.weight + i, count) + norm.weight_offset;
    if (norm.bias != nullptr) lanes += load_lanes(norm.bias + i, count);
    store_lanes(lanes, normed + i, count);
  });
}

template <typename Row>
void norm(RowView<const Row> x, RowView<const Row> residual, RowView<Row> summed, RowView<Row> y, int64_t begin,
          int64_t end, const Norm<Compute<Row>>& norm, const Eraser<Compute<Row>>& eraser) {
  using Number = Compute<Row>;
  const int64_t dim = eraser.dim, chunk = rows_of_chunk(dim * sizeof(Number), eraser.rank);
  static thread_local Scratch kept;
  auto* normed = static_cast<Number*>(kept.at_least(chunk * (dim + eraser.rank) * sizeof(Number)));
  Number* weights = normed + chunk * dim;
  for (int64_t row = begin; row < end; row += chunk) {
    const int64_t count = row + chunk < end ? chunk : end - row;
    for (int64_t r = 0; r < count; ++r)
      norm_row(x[row + r], residual.data == nullptr ? nullptr : residual[row + r],
               residual.data == nullptr ? nullptr : summed[row + r], norm, dim, normed + r * dim);
    const RowView<const Number> from{normed, dim, nullptr};
    coordinates<Number>(from, 0, count, eraser, 0, eraser.rank, weights);
    // The rows of this chunk, by their own numbers or from the first on.
    const RowView<Row> to{y.order == nullptr ? y.data + row * y.stride : y.data, y.stride,
                       y.order == nullptr ? nullptr : y.order + row};
    subtract<Number, Row>(from, to, 0, count, eraser, 0, dim, weights);
  }
}
