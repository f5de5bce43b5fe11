// Numbers in two bfloat16 parts, and factors laid out in tiles of them.
//
// Included by amx.cpp inside its namespace.
//
// Two parts keep 16 bits of a number, of which rows of 16-bit numbers, and so results, keep 11 at most. (Float32 rows
// would need three parts, six products instead of three and half as much memory again, which leaves no gain.) A pair is
// the two numbers 16 apart in a block of 32: what the units multiply at a time.

constexpr int64_t TILE = 256;  // pairs of bfloat16 numbers, or float32 numbers, in a tile
constexpr int64_t BLOCK = 32;  // numbers that one row of a tile takes, as 16 pairs
constexpr int PARTS = 2;

struct Pairs {
  Bits high, low;  // by part
};

// The pairs of numbers 0 to 15 and 16 to 31 of a block. The first part is cut off, so that the largest number stays
// finite, and the second one rounded.
INLINE Pairs split(Vector<float> first, Vector<float> second) {
  const Bits a = as<Bits>(first) & 0xffff0000u, b = as<Bits>(second) & 0xffff0000u;
  const Bits rest_a = as<Bits>(first - as<Vector<float>>(a)) + 0x8000u;
  const Bits rest_b = as<Bits>(second - as<Vector<float>>(b)) + 0x8000u;
  return {(a >> 16) | b, (rest_a >> 16) | (rest_b & 0xffff0000u)};
}

// The factors of an eraser: strips of 16 ranks, each of all blocks of columns; then strips of 16 columns, each of all
// blocks of ranks. A block has a tile for each part. All is padded with zeros.
struct Layout {
  Layout(int64_t dim, int64_t rank)
      : column_blocks((dim + BLOCK - 1) / BLOCK),
        rank_blocks((rank + BLOCK - 1) / BLOCK),
        rank_strip(column_blocks * PARTS * TILE),
        column_strip(rank_blocks * PARTS * TILE),
        left((rank + 15) / 16 * rank_strip),
        size(left + (dim + 15) / 16 * column_strip) {}

  int64_t column_blocks, rank_blocks;
  int64_t rank_strip, column_strip;  // pairs of 16 ranks, and of 16 columns
  int64_t left, size;                // pairs of all of `right`, and of both factors
};

INLINE Vector<float> load_some(const float* from, int64_t count) {
  return count >= 16 ? load(from) : count > 0 ? load_part(from, count) : Vector<float>{};
}

void pack(const Eraser<float>& eraser, uint32_t* to) {
  const Layout layout(eraser.dim, eraser.rank);
  for (int64_t rank = 0; rank < (eraser.rank + 15) / 16 * 16; ++rank)
    for (int64_t block = 0; block < layout.column_blocks; ++block) {
      const int64_t column = block * BLOCK, rest = rank < eraser.rank ? eraser.dim - column : 0;
      const float* from = eraser.right + rank * eraser.dim + column;
      const Pairs pairs = split(load_some(from, rest), load_some(from + 16, rest - 16));
      uint32_t* tile = to + rank / 16 * layout.rank_strip + block * PARTS * TILE + rank % 16;
      for (int pair = 0; pair < 16; ++pair) {
        tile[pair * 16] = pairs.high[pair];
        tile[TILE + pair * 16] = pairs.low[pair];
      }
    }
  for (int64_t column = 0; column < eraser.dim; column += 16)
    for (int64_t block = 0; block < layout.rank_blocks; ++block)
      for (int64_t pair = 0; pair < 16; ++pair) {
        const auto of_rank = [&](int64_t rank) {
          const int64_t rest = rank < eraser.rank ? eraser.dim - column : 0;
          return load_some(eraser.left_t + rank * eraser.dim + column, rest);
        };
        const Pairs pairs = split(of_rank(block * BLOCK + pair), of_rank(block * BLOCK + pair + 16));
        uint32_t* tile = to + layout.left + column / 16 * layout.column_strip + block * PARTS * TILE + pair * 16;
        write(pairs.high, tile);
        write(pairs.low, tile + TILE);
      }
}
