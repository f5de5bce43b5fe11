// The second moment on the matrix units (AMX): included by moments.cpp inside its namespace, after loads.inl
// and tiles.inl.
//
// They multiply bfloat16 and add in float32. A float32 number is the exact sum of three bfloat16 parts of falling size,
// and a product of two parts is exact in float32; those of parts p and q with p + q > 2 lie below 2^-26 of the whole
// and are left out. Rows that were bfloat16, or float32 of few digits, need one part or two: panels know how many they
// have.

constexpr int64_t TILE = 512;        // numbers in a tile: 16 columns of BLOCK_ROWS rows
constexpr int64_t BLOCK = 2 * TILE;  // a panel's numbers in BLOCK_ROWS rows

// A panel lies in two forms, for the left operand (a column's rows side by side) and the right one (a row's columns
// side by side, rows in pairs), each by part, block and half. The right forms of all panels lie `to_right` behind the
// left ones: side by side, forms of one kind use all sets of the caches.
struct Layout {
  explicit Layout(int64_t count)
      : blocks((count + BLOCK_ROWS - 1) / BLOCK_ROWS), part(blocks * BLOCK), form(PARTS * part) {}
  int64_t blocks, part, form;
};

// To the nearest bfloat16, ties to even.
inline __m512i rounded(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_and_si512(up, _mm512_set1_epi32(int(0xffff0000u)));
}

// The transpose of 16 x 16 pairs of numbers.
inline void transpose(const uint16_t* from, uint16_t* to) {
  __m512i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_load_si512(from + 32 * i);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 g + i] now holds, in its 128-bit lane l, column 4 l + i of rows 4 g to 4 g + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88), high = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    _mm512_store_si512(to + 32 * i, _mm512_shuffle_i32x4(low, low2, 0x88));
    _mm512_store_si512(to + 32 * (4 + i), _mm512_shuffle_i32x4(high, high2, 0x88));
    _mm512_store_si512(to + 32 * (8 + i), _mm512_shuffle_i32x4(low, low2, 0xdd));
    _mm512_store_si512(to + 32 * (12 + i), _mm512_shuffle_i32x4(high, high2, 0xdd));
  }
}

// Packs 16 columns of a block in `COUNT` parts. Returns how many of them hold anything, and COUNT + 1 if something is
// left over.
template <int COUNT, typename Row>
inline int pack_half(const Source<Row>& from, int64_t column, int64_t first, int64_t count, int64_t part_size,
                     uint16_t* left, uint16_t* right, double* rest) {
  const int64_t columns = std::clamp<int64_t>(from.columns - column, 0, 16);
  const __mmask16 mask = __mmask16((1u << columns) - 1);
  const __m512 centre = _mm512_maskz_loadu_ps(mask, from.centre + column);
  __m512d sums[2] = {_mm512_loadu_pd(rest), _mm512_loadu_pd(rest + 8)};
  __m512i used[COUNT + 1];
  for (auto& bits : used) bits = _mm512_setzero_si512();
  const Row* x = from.x + first * from.stride + column;
  for (int64_t r = 0; r < BLOCK_ROWS; r += 2) {
    __m512 row[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = r; i < std::min(r + 2, count); ++i) {
      __m512 centred = _mm512_sub_ps(load(x + i * from.stride, mask), centre);
      __m512d by = _mm512_set1_pd(1.0);
      if (from.root != nullptr) {
        const float root = from.root[first + i];
        centred = _mm512_mul_ps(centred, _mm512_set1_ps(root));
        by = _mm512_set1_pd(root);
      }
      sums[0] = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(centred)), by, sums[0]);
      sums[1] = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(centred, 1)), by, sums[1]);
      row[i - r] = centred;
    }
    for (int part = 0; part < COUNT; ++part) {
      const __m512i even = rounded(row[0]), odd = rounded(row[1]);
      row[0] = _mm512_sub_ps(row[0], _mm512_castsi512_ps(even));
      row[1] = _mm512_sub_ps(row[1], _mm512_castsi512_ps(odd));
      const __m512i both = _mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
      used[part] = _mm512_or_si512(used[part], both);
      _mm512_store_si512(right + part * part_size + r * 16, both);
    }
    used[COUNT] = _mm512_or_si512(used[COUNT], _mm512_castps_si512(_mm512_or_ps(row[0], row[1])));
  }
  for (int part = 0; part < COUNT; ++part) transpose(right + part * part_size, left + part * part_size);
  _mm512_storeu_pd(rest, sums[0]);
  _mm512_storeu_pd(rest + 8, sums[1]);
  // The sign of a zero is no digit.
  const __m512i digits = _mm512_set1_epi32(int(0x7fff7fffu));
  int most = 1;
  for (int part = 1; part <= COUNT; ++part)
    if (_mm512_test_epi32_mask(used[part], digits)) most = part + 1;
  return most;
}

template <int COUNT, typename Row>
int pack_parts(const Source<Row>& from, int64_t first, int64_t count, const Layout& layout, uint16_t* left,
               int64_t to_right, double* rest) {
  double sums[WIDTH];
  std::copy_n(rest, WIDTH, sums);
  int most = 1;
  for (int half = 0; half < 2; ++half) {
    uint16_t* to = left + half * TILE;
    most = std::max(most, pack_half<COUNT>(from, 16 * half, first, count, layout.part, to, to + to_right,
                                           sums + 16 * half));
  }
  if constexpr (COUNT < PARTS) {
    if (most > COUNT) return pack_parts<COUNT + 1>(from, first, count, layout, left, to_right, rest);
  }
  std::copy_n(sums, WIDTH, rest);
  return std::min(most, COUNT);
}

// Packs a block of a panel, in `least` parts or more, and returns in how many.
template <typename Row>
int pack_block(const Source<Row>& from, int64_t first, int64_t count, int least, const Layout& layout, uint16_t* left,
               int64_t to_right, double* rest) {
  switch (least) {
    case 1:
      return pack_parts<1>(from, first, count, layout, left, to_right, rest);
    case 2:
      return pack_parts<2>(from, first, count, layout, left, to_right, rest);
    default:
      return pack_parts<3>(from, first, count, layout, left, to_right, rest);
  }
}

// Packs rows first..first + count of panels begin..end, block by block, so that rows are read as they lie; sets the
// number of parts of each panel.
template <typename Row>
void pack(const Block<Row>& block, int64_t begin, int64_t end, int64_t first, int64_t count, uint16_t* packed,
          int64_t panel_size, int64_t to_right, int* parts, double* rest) {
  const Layout layout(count);
  std::vector<int> parts_of((end - begin) * layout.blocks);
  for (int64_t p = begin; p < end; ++p) parts[p] = block.panel(p).least_parts();
  for (int64_t b = 0; b < layout.blocks; ++b)
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = b * BLOCK_ROWS;
      const int found = pack_block(block.panel(p), first + row, std::min(BLOCK_ROWS, count - row), parts[p], layout,
                                   packed + p * panel_size + b * BLOCK, to_right, rest + p * WIDTH);
      parts_of[(p - begin) * layout.blocks + b] = found;
      parts[p] = std::max(parts[p], found);
    }
  // What a block lacks of its panel's parts is zero, and parts that no block has are none.
  for (int64_t p = begin; p < end; ++p) {
    const int* of_blocks = parts_of.data() + (p - begin) * layout.blocks;
    parts[p] = *std::max_element(of_blocks, of_blocks + layout.blocks);
    for (int64_t b = 0; b < layout.blocks; ++b)
      for (int part = of_blocks[b]; part < parts[p]; ++part) {
        uint16_t* left = packed + p * panel_size + part * layout.part + b * BLOCK;
        std::fill_n(left, BLOCK, uint16_t(0));
        std::fill_n(left + to_right, BLOCK, uint16_t(0));
      }
  }
}

template <int PART>
inline void load_left(const uint16_t* left, int64_t part) {
  tile_load<4>(left + PART * part);
  tile_load<5>(left + PART * part + TILE);
}

template <int PART>
inline void load_right(const uint16_t* right, int64_t part) {
  tile_load<6>(right + PART * part);
  tile_load<7>(right + PART * part + TILE);
}

inline void multiply_add() {
  tile_multiply<0, 4, 6>();
  tile_multiply<1, 4, 7>();
  tile_multiply<2, 5, 6>();
  tile_multiply<3, 5, 7>();
}

template <int LEFT, int RIGHT>
void multiply_parts(const uint16_t* left, const uint16_t* right, int64_t count, float* out) {
  const Layout layout(count);
  each<4>([](auto i) { tile_zero<i.value>(); });
  for (int64_t block = 0; block < layout.blocks; ++block, left += BLOCK, right += BLOCK) {
    // Each product but the first of a block takes one operand from the product before.
    load_left<0>(left, layout.part);
    if constexpr (RIGHT > 2) {
      load_right<2>(right, layout.part);
      multiply_add();
    }
    if constexpr (RIGHT > 1) {
      load_right<1>(right, layout.part);
      multiply_add();
    }
    if constexpr (LEFT > 1) {
      load_left<1>(left, layout.part);
      if constexpr (RIGHT > 1) multiply_add();
    }
    load_right<0>(right, layout.part);
    multiply_add();
    if constexpr (LEFT > 2) {
      load_left<2>(left, layout.part);
      multiply_add();
    }
    if constexpr (LEFT > 1) {
      load_left<0>(left, layout.part);
      multiply_add();
    }
  }
  each<4>([&](auto i) { tile_store<i.value>(out + i / 2 * 16 * WIDTH + i % 2 * 16, WIDTH * sizeof(float)); });
}

void multiply(const uint16_t* left, int left_parts, const uint16_t* right, int right_parts, int64_t count, float* out) {
  using Multiply = void (*)(const uint16_t*, const uint16_t*, int64_t, float*);
  static constexpr Multiply by_parts[PARTS][PARTS] = {
      {multiply_parts<1, 1>, multiply_parts<1, 2>, multiply_parts<1, 3>},
      {multiply_parts<2, 1>, multiply_parts<2, 2>, multiply_parts<2, 3>},
      {multiply_parts<3, 1>, multiply_parts<3, 2>, multiply_parts<3, 3>},
  };
  by_parts[left_parts - 1][right_parts - 1](left, right, count, out);
}
