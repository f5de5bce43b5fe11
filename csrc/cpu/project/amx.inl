// The erasure of rows of 16-bit numbers with packed factors, on the matrix units.
//
// Included by amx.cpp inside its namespace.
//
// Rows go through in groups of at most 16, the rows of a tile. Each number of a product is one sum, over block after
// block and in a block over the products of parts, small ones first: the same bits however rows, ranks and columns are
// divided.

constexpr int64_t LEAST_RANK = 32;  // below, the work on padded ranks costs more than the units save
constexpr int64_t SEGMENT = 8;      // blocks of columns whose parts stay in the first cache
constexpr int64_t PANEL = 16;       // strips of 16 columns whose factors serve all groups before the next
constexpr int64_t CHUNK = 8 * TILE_ROWS;  // rows that go through together
constexpr int64_t WIDE = 4;               // strips that are multiplied in one go

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls work(first row, count of rows, number of the group) for groups of rows.
template <typename Work>
INLINE void groups(int64_t begin, int64_t end, Tiles& tiles, const Work& work) {
  for (int64_t row = begin; row < end; row += TILE_ROWS) {
    const int64_t count = smaller(TILE_ROWS, end - row);
    tiles.set_rows(count);
    work(row, count, (row - begin) / TILE_ROWS);
  }
}

INLINE int64_t count_groups(int64_t rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

// Lays out x - mean of some rows in tiles by part, for `blocks` blocks of numbers from `first` on.
template <typename In>
void pack_rows(RowView<const In> x, int64_t row, int64_t count, const float* mean, int64_t dim, int64_t first,
               int64_t blocks, uint32_t* to) {
  for (int64_t r = 0; r < count; ++r) {
    const In* from = x[row + r];
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t column = first + block * BLOCK, rest = dim - column;
      In part[BLOCK] = {};
      float centre[BLOCK] = {};
      const In* numbers = from + column;
      const float* middle = mean == nullptr ? centre : mean + column;
      if (rest < BLOCK) {
        __builtin_memcpy(part, numbers, rest * sizeof(In));
        if (mean != nullptr) __builtin_memcpy(centre, middle, rest * sizeof(float));
        numbers = part, middle = centre;
      }
      const Pairs pairs = split(load(numbers) - load(middle), load(numbers + 16) - load(middle + 16));
      uint32_t* tile = to + block * PARTS * TILE + r * 16;
      write(pairs.high, tile);
      write(pairs.low, tile + TILE);
    }
  }
}

// sums[strip] += rows times a strip of factors, for COUNT strips and over `blocks` blocks; from zero where `fresh`.
template <int COUNT>
void multiply_strips(const uint32_t* rows, const uint32_t* factors, int64_t strip, int64_t blocks, bool fresh,
                     float* sums) {
  each<COUNT>([&](auto i) INLINE_LAMBDA {
    if (fresh)
      tile_zero<i.value>();
    else
      tile_load<i.value>(sums + i * TILE);
  });
  for (int64_t block = 0; block < blocks; ++block, rows += PARTS * TILE, factors += PARTS * TILE) {
    tile_load<4>(rows);
    tile_load<5>(rows + TILE);
    each<COUNT>([&](auto i) INLINE_LAMBDA {
      tile_load<6>(factors + i * strip + TILE);
      tile_load<7>(factors + i * strip);
      tile_multiply<i.value, 4, 6>();
      tile_multiply<i.value, 5, 7>();
      tile_multiply<i.value, 4, 7>();
    });
  }
  each<COUNT>([&](auto i) INLINE_LAMBDA { tile_store<i.value>(sums + i * TILE); });
}

// The same for any number of strips.
void multiply(const uint32_t* rows, const uint32_t* factors, int64_t strip, int64_t count, int64_t blocks, bool fresh,
              float* sums) {
  int64_t i = 0;
  for (; i + WIDE <= count; i += WIDE)
    multiply_strips<WIDE>(rows, factors + i * strip, strip, blocks, fresh, sums + i * TILE);
  for (; i < count; ++i) multiply_strips<1>(rows, factors + i * strip, strip, blocks, fresh, sums + i * TILE);
}

template <typename In>
void coordinates(RowView<const In> x, int64_t begin, int64_t end, const Eraser<float>& eraser, int64_t first,
                 int64_t last, float* out) {
  const Layout layout(eraser.dim, eraser.rank);
  const auto* right = static_cast<const uint32_t*>(eraser.packed) + first / 16 * layout.rank_strip;
  const int64_t strips = (last - first + 15) / 16, sums_size = strips * TILE;
  constexpr int64_t PARTS_SIZE = SEGMENT * PARTS * TILE;
  auto* parts = scratch<uint32_t>((PARTS_SIZE + count_groups(end - begin) * sums_size) * sizeof(uint32_t));
  auto* all_sums = reinterpret_cast<float*>(parts + PARTS_SIZE);
  Tiles tiles;
  for (int64_t block = 0; block < layout.column_blocks; block += SEGMENT) {
    const int64_t blocks = smaller(SEGMENT, layout.column_blocks - block);
    groups(begin, end, tiles, [&](int64_t row, int64_t count, int64_t group) INLINE_LAMBDA {
      pack_rows(x, row, count, eraser.mean, eraser.dim, block * BLOCK, blocks, parts);
      multiply(parts, right + block * PARTS * TILE, layout.rank_strip, strips, blocks, block == 0,
               all_sums + group * sums_size);
    });
  }
  for (int64_t row = 0; row < end - begin; ++row)
    for (int64_t strip = 0; strip < strips; ++strip) {
      const float* sums = all_sums + row / TILE_ROWS * sums_size + strip * TILE + row % TILE_ROWS * 16;
      store_some(load(sums), out + row * eraser.rank + first + strip * 16, last - first - strip * 16);
    }
}

template <typename Row>
void subtract(RowView<const Row> x, RowView<Row> y, int64_t begin, int64_t end, const Eraser<float>& eraser,
              int64_t first, int64_t last, const float* coordinates) {
  const Layout layout(eraser.dim, eraser.rank);
  const auto* left = static_cast<const uint32_t*>(eraser.packed) + layout.left;
  const int64_t parts_size = layout.rank_blocks * PARTS * TILE, all_parts_size = count_groups(end - begin) * parts_size;
  auto* all_parts = scratch<uint32_t>((all_parts_size + PANEL * TILE) * sizeof(uint32_t));
  auto* sums = reinterpret_cast<float*>(all_parts + all_parts_size);
  const RowView<const float> weights{coordinates, eraser.rank, nullptr};
  Tiles tiles;
  groups(begin, end, tiles, [&](int64_t row, int64_t count, int64_t group) INLINE_LAMBDA {
    pack_rows(weights, row - begin, count, nullptr, eraser.rank, 0, layout.rank_blocks, all_parts + group * parts_size);
  });
  const int64_t end_strip = (last + 15) / 16;
  for (int64_t panel = first / 16; panel < end_strip; panel += PANEL) {
    const int64_t strips = smaller(PANEL, end_strip - panel);
    groups(begin, end, tiles, [&](int64_t row, int64_t count, int64_t group) INLINE_LAMBDA {
      multiply(all_parts + group * parts_size, left + panel * layout.column_strip, layout.column_strip, strips,
               layout.rank_blocks, true, sums);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t strip = 0; strip < strips; ++strip) {
          const int64_t column = (panel + strip) * 16, rest = eraser.dim - column;
          const Row* from = x[row + r] + column;
          const Vector<float> lanes = rest >= 16 ? load(from) : load_part(from, rest);
          store_some(lanes - load(sums + strip * TILE + r * 16), y[row + r] + column, rest);
        }
    });
  }
}

template <typename Row>
void project(RowView<const Row> x, RowView<Row> y, int64_t begin, int64_t end, const Eraser<float>& eraser) {
  static thread_local Scratch kept;
  auto* weights = static_cast<float*>(kept.at_least(CHUNK * eraser.rank * sizeof(float)));
  for (int64_t row = begin; row < end; row += CHUNK) {
    const int64_t stop = smaller(row + CHUNK, end);
    coordinates(x, row, stop, eraser, 0, eraser.rank, weights);
    subtract(x, y, row, stop, eraser, 0, eraser.dim, weights);
  }
}
