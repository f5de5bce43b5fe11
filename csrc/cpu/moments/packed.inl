// A block of rows, packed for the products of its panels in the forms that an instruction set multiplies: included by
// moments.cpp after the kernels of all sets.

template <typename Row>
class Packed {
 public:
  Packed(const Block<Row>& block, InstructionSet set)
      : block_(block),
        vectors_(vector_kernels<Row>(set)),
        amx_(set == InstructionSet::AMX),
        tries_pairs_(block.tries_pairs(set)),
        panels_(panels_of(block.rows.dim)),
        run_(std::min(!amx_ ? VECTOR_DEPTH : sizeof(Row) == 4 ? FLOAT_DEPTH : SHORT_DEPTH, block.rows.count)),
        runs_((block.rows.count + run_ - 1) / run_),
        // As float32 numbers for vectors, in two forms for the matrix units.
        bytes_(amx_ ? 2 * amx::Layout(run_).form : run_ * WIDTH * int64_t(sizeof(float))),
        pair_bytes_((run_ + 1) / 2 * WIDTH * int64_t(sizeof(uint32_t))),
        parts_(runs_ * panels_),
        exact_(panels_, tries_pairs_) {
    const int64_t pairs = tries_pairs_ ? runs_ * panels_ * pair_bytes_ : 0;
    static thread_local cpu::Scratch kept;  // fresh pages cost more than the sums that go into them
    pairs_ = static_cast<char*>(kept.at_least(pairs + (amx_ ? 2 : 1) * all()));
    packed_ = pairs_ + pairs;
  }

  // Packs all rows, and adds what its numbers sum to to `rest`, for the columns of panels that are not `exact`.
  void pack(const Parallel& parallel, double* rest) {
    const auto each = [&](const auto& pack_run) {
      parallel(panels_, block_.rows.count * WIDTH, [&](int64_t begin, int64_t end) {
        for (int64_t k = 0; k < runs_; ++k) pack_run(begin, end, k);
      });
    };
    if (tries_pairs_)
      each([&](int64_t begin, int64_t end, int64_t k) {
        avx512bf16::pack(block_, begin, end, k * run_, rows_of(k), pairs_at(k, 0), pair_bytes_ / 4, exact_.data());
      });
    if (amx_)
      each([&](int64_t begin, int64_t end, int64_t k) {
        amx::pack(block_, begin, end, k * run_, rows_of(k), left_at(k, 0), bytes_ / 2, all() / 2,
                  parts_.data() + k * panels_, rest);
      });
    else if (std::count(exact_.begin(), exact_.end(), true) < panels_)
      each([&](int64_t begin, int64_t end, int64_t k) {
        vectors_.pack(block_, begin, end, k * run_, rows_of(k), floats_at(k, 0), bytes_ / 4, rest);
      });
  }

  int64_t runs() const { return runs_; }

  // Whether bfloat16 holds a panel exactly, and pairs of its rows are multiplied.
  bool exact(int64_t panel) const { return exact_[panel]; }

  // The product of the panels i and j over a run of rows.
  void multiply(int64_t k, int64_t i, int64_t j, float* out) const {
    if (amx_)
      amx::multiply(left_at(k, i), parts_[k * panels_ + i], left_at(k, j) + all() / 2, parts_[k * panels_ + j],
                    rows_of(k), out);
    else if (exact(i) && exact(j))
      avx512bf16::multiply(pairs_at(k, i), pairs_at(k, j), rows_of(k), out);
    else
      vectors_.multiply(floats_at(k, i), floats_at(k, j), rows_of(k), out);
  }

 private:
  // The panels of a run lie side by side, and one run behind the other.
  char* at(char* from, int64_t bytes, int64_t k, int64_t p) const { return from + (k * panels_ + p) * bytes; }
  float* floats_at(int64_t k, int64_t p) const { return reinterpret_cast<float*>(at(packed_, bytes_, k, p)); }
  uint32_t* pairs_at(int64_t k, int64_t p) const { return reinterpret_cast<uint32_t*>(at(pairs_, pair_bytes_, k, p)); }
  uint16_t* left_at(int64_t k, int64_t p) const { return reinterpret_cast<uint16_t*>(at(packed_, bytes_, k, p)); }
  int64_t rows_of(int64_t k) const { return std::min(run_, block_.rows.count - k * run_); }
  int64_t all() const { return runs_ * panels_ * bytes_; }

  const Block<Row>& block_;
  const VectorKernels<Row>& vectors_;
  const bool amx_, tries_pairs_;
  const int64_t panels_, run_, runs_;  // how many panels; rows of a run; how many runs
  const int64_t bytes_, pair_bytes_;   // of a panel in a run
  std::vector<int> parts_;             // of each panel in each run, on the matrix units
  std::vector<char> exact_;
  char *packed_, *pairs_;
};
