// How rows are sorted by eraser and divided among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "leace_fast.h"

namespace leace_fast::cpu {

// Handing work to another thread costs some microseconds.
struct Division {
  int64_t work;      // multiplications that a thread is given at least
  int64_t rows;      // in one piece
  int64_t ranks;     // in one piece, where there are few rows, and threads divide ranks and columns
  int64_t few_rows;  // up to here they do
};
constexpr Division PLAIN{1 << 18, 1, 1, 4}, PACKED{1 << 18, 16, 16, 16};
constexpr int64_t FEW_ROWS_WORK = 1 << 16;  // then in place of `work`: factors are read for it, which takes longer
constexpr int64_t COLUMNS_OF_TASK = 64;  // a multiple of every number of lanes, and of a tile

// Calls work(b, e) for ranges that cover begin..end.
template <typename Work>
void parallel(leace_fast_parallel_for parallel_for, int64_t end, int64_t grain, const Work& work) {
  if (parallel_for == nullptr || end <= grain) return work(0, end);
  const auto body = [](int64_t first, int64_t last, void* context) {
    (*static_cast<const Work*>(context))(first, last);
  };
  parallel_for(0, end, grain, body, const_cast<void*>(static_cast<const void*>(&work)));
}

// The rows by eraser: group 0 has none, group e + 1 has eraser e.
struct Groups {
  std::vector<int64_t> order;   // the numbers of the rows, group by group
  std::vector<int64_t> starts;  // of the groups, and the end

  // Returns false where `index` names an eraser that is not there.
  bool sort(const int64_t* index, int64_t rows, int64_t erasers) {
    starts.assign(erasers + 2, 0);
    for (int64_t row = 0; row < rows; ++row) {
      if (index[row] < -1 || index[row] >= erasers) return false;
      ++starts[index[row] + 2];
    }
    for (int64_t group = 0; group <= erasers; ++group) starts[group + 1] += starts[group];
    std::vector<int64_t> next(starts);
    order.resize(rows);
    for (int64_t row = 0; row < rows; ++row) order[next[index[row] + 1]++] = row;
    return true;
  }

  // Calls work(group, b, e) for the parts of groups that positions begin..end of `order` consist of.
  template <typename Work>
  void each(int64_t begin, int64_t end, const Work& work) const {
    auto group = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; ++group) {
      const int64_t stop = std::min(end, starts[group + 1]);
      if (begin < stop) work(group, begin, stop);
      begin = stop;
    }
  }
};

// Calls work(order, eraser's number, begin, end) for all rows, on many threads where there is enough to do.
template <typename Work>
leace_fast_status by_eraser(const int64_t* index, int64_t rows, const leace_fast_factors& factors, Division division,
                            leace_fast_parallel_for parallel_for, const Work& work) {
  Groups groups;
  if (index != nullptr && !groups.sort(index, rows, factors.erasers)) return LEACE_FAST_BAD_INDEX;
  const int64_t piece = division.rows, pieces = (rows + piece - 1) / piece;
  const int64_t work_of_piece = piece * (factors.dim * (2 * factors.rank + 4) + 1);
  parallel(parallel_for, pieces, std::max<int64_t>(1, division.work / work_of_piece), [&](int64_t first, int64_t last) {
    const int64_t begin = first * piece, end = std::min(last * piece, rows);
    if (index == nullptr) return work(static_cast<const int64_t*>(nullptr), 0, begin, end);
    groups.each(begin, end, [&](int64_t group, int64_t from, int64_t to) {
      work(groups.order.data(), group - 1, from, to);
    });
  });
  return LEACE_FAST_OK;
}

}  // namespace leace_fast::cpu
