// The matrix units (AMX): eight tiles of up to 16 rows of 64 bytes, and the product of two of them.
//
// Included inside the namespaces for AMX of both kinds of kernels. The intrinsics of the compiler take the number of a
// tile as a literal only, which would leave no loop over tiles.

constexpr int64_t TILE_ROWS = 16;
constexpr int64_t TILE_ROW = 64;  // bytes

// How many rows each tile has: `count` in those of sums and left operands, all in right operands, which are the last
// two.
struct Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16];

  explicit Configuration(int64_t count) : rows{} {
    for (int tile = 0; tile < 8; ++tile) rows[tile] = uint8_t(tile < 6 ? count : TILE_ROWS);
  }
};
static_assert(sizeof(Configuration) == 64);

// The tiles of this thread, for as long as this lives: a thread that holds tiles is slower to switch.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() {
    if (rows_ != 0) asm volatile("tilerelease");
  }

  void set_rows(int64_t rows) {
    if (rows == rows_) return;
    const Configuration configuration(rows);
    asm volatile("ldtilecfg %0" ::"m"(configuration));
    rows_ = rows;
  }

 private:
  int64_t rows_ = 0;
};

template <int TO>
INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TO));
}

template <int TO>
INLINE void tile_load(const void* from) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(TILE_ROW), "i"(TO) : "memory");
}

// Its rows to addresses `stride` bytes apart.
template <int FROM>
INLINE void tile_store(void* to, int64_t stride = TILE_ROW) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(FROM) : "memory");
}

// sum += left right, of pairs of bfloat16 numbers, in float32; subnormal numbers count as zeros.
template <int SUM, int LEFT, int RIGHT>
INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

template <typename Work, int... I>
INLINE void each(std::integer_sequence<int, I...>, const Work& work) {
  (work(Constant<I>{}), ...);
}
// Calls work(integer constant), the number of a tile, for 0 to COUNT - 1.
template <int COUNT, typename Work>
INLINE void each(const Work& work) {
  each(std::make_integer_sequence<int, COUNT>{}, work);
}
