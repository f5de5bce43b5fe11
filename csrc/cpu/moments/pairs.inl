// The second moment of rows that bfloat16 holds exactly, by the vector instruction for it (AVX512-BF16): included by
// moments.cpp inside its namespace, after loads.inl.
//
// It multiplies pairs of bfloat16 numbers and adds both products to a float32 sum: twice as many operations as in
// float32. Rows that were bfloat16 are held exactly where they are centred at zero, and mostly about a mean ten
// standard deviations off and more: their exponents differ by one at most.

// Packs `count` rows, BLOCK_ROWS at most: of two rows side by side, the numbers of each of WIDTH columns. Returns false
// where bfloat16 does not hold them.
template <typename Row>
inline bool pack_block(const Source<Row>& from, int64_t first, int64_t count, uint32_t* to) {
  __m512i lost = _mm512_setzero_si512();
  for (int64_t column = 0; column < WIDTH; column += 16) {
    const __mmask16 inside = __mmask16((1u << std::clamp<int64_t>(from.columns - column, 0, 16)) - 1);
    const __m512 centre = _mm512_maskz_loadu_ps(inside, from.centre + column);
    for (int64_t r = 0; r < count; r += 2) {
      const Row* x = from.x + (first + r) * from.stride + column;
      const __m512i even = _mm512_castps_si512(_mm512_sub_ps(load(x, inside), centre));
      const __m512i odd = r + 1 < count ? _mm512_castps_si512(_mm512_sub_ps(load(x + from.stride, inside), centre))
                                        : _mm512_setzero_si512();
      lost = _mm512_or_si512(lost, _mm512_or_si512(even, odd));
      _mm512_storeu_si512(to + r / 2 * WIDTH + column,
                          _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even, 16), odd));
    }
  }
  return _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff)) == 0;
}

// Packs rows first..first + count of the panels begin..end, as long as they are `exact`, and says which of them stay
// so.
template <typename Row>
void pack(const Block<Row>& block, int64_t begin, int64_t end, int64_t first, int64_t count, uint32_t* packed,
          int64_t panel_size, char* exact) {
  for (int64_t row = 0; row < count; row += BLOCK_ROWS)
    for (int64_t p = begin; p < end; ++p)
      exact[p] = exact[p] && pack_block(block.panel(p), first + row, std::min(BLOCK_ROWS, count - row),
                                        packed + p * panel_size + row / 2 * WIDTH);
}

// out[i][j] += sum over pairs of rows of a[i] b[j], for 8 values of i and 32 of j.
inline void multiply_slice(const uint32_t* a, const uint32_t* b, int64_t pairs, float* out) {
  __m512 sums[8][2] = {};
  for (int64_t r = 0; r < pairs; ++r, a += WIDTH, b += WIDTH) {
    const auto low = __m512bh(_mm512_loadu_si512(b)), high = __m512bh(_mm512_loadu_si512(b + 16));
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const auto pair = __m512bh(_mm512_set1_epi32(int(a[i])));
      sums[i][0] = _mm512_dpbf16_ps(sums[i][0], pair, low);
      sums[i][1] = _mm512_dpbf16_ps(sums[i][1], pair, high);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    for (int half = 0; half < 2; ++half) {
      float* to = out + i * WIDTH + 16 * half;
      _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums[i][half]));
    }
}

void multiply(const uint32_t* a, const uint32_t* b, int64_t count, float* out) {
  std::fill_n(out, WIDTH * WIDTH, 0.0f);
  const int64_t pairs = (count + 1) / 2;
  for (int64_t r = 0; r < pairs; r += BLOCK_ROWS / 2)
    for (int64_t i = 0; i < WIDTH; i += 8)
      multiply_slice(a + r * WIDTH + i, b + r * WIDTH, std::min(BLOCK_ROWS / 2, pairs - r), out + i * WIDTH);
}
