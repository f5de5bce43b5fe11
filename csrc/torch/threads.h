// Loops shared out among torch's threads, also on a machine whose cores other programs use at the same time.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace leace_fast::threads {

// Another program takes a core from a thread for milliseconds, and all others wait for it at the end of a loop. Where a
// thread waits for more than a part of its work, it goes on alone for twenty times as long as was lost. Threads that
// sleep take a while to come too, but once for many loops.
class Patience {
 public:
  using Clock = std::chrono::steady_clock;

  static bool is_gone() { return alone_.load(std::memory_order_relaxed) > 0; }

  static void worked_alone(Clock::duration time) { alone_.fetch_sub(time.count(), std::memory_order_relaxed); }

  static void waited(Clock::duration time, Clock::duration work) {
    const Clock::duration before(lost_.load(std::memory_order_relaxed));
    Clock::duration lost = std::max(before + time - work / 8, Clock::duration::zero());
    if (lost > MOST_LOST) {
      alone_.store(20 * Clock::duration(lost + SPINNING).count(), std::memory_order_relaxed);
      last_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
      lost = Clock::duration::zero();
    }
    lost_.store(lost.count(), std::memory_order_relaxed);
  }

  // Whether a loop waited for long in the last seconds.
  static bool was_tried() {
    const Clock::duration last(last_.load(std::memory_order_relaxed));
    return last.count() != 0 && Clock::now().time_since_epoch() - last < std::chrono::seconds(2);
  }

 private:
  // What may be lost, and how long a thread of OpenMP keeps its core after a loop, waiting for the next one.
  static constexpr std::chrono::microseconds MOST_LOST{1500}, SPINNING{8000};
  static inline std::atomic<Clock::rep> lost_ = 0;   // by waiting, beyond an eighth of the work since
  static inline std::atomic<Clock::rep> alone_ = 0;  // the work that is still to be done by one thread
  static inline std::atomic<Clock::rep> last_ = 0;   // when a loop waited
};

// Calls work(begin, end) for ranges that cover 0..count, of at least `least` and about at most `most` items: a thread
// that is held up holds up the others by what was handed to it.
template <typename Work>
void share(int64_t count, int64_t least, int64_t most, const Work& work) {
  constexpr int64_t PORTIONS = 4;  // of each thread, where there is little to do
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (count + least - 1) / least);
  if (threads <= 1) return work(0, count);
  using Clock = Patience::Clock;
  if (Patience::is_gone()) {
    const auto start = Clock::now();
    work(0, count);
    return Patience::worked_alone(Clock::now() - start);
  }
  const int64_t portion = std::max(least, std::min(most, (count + threads * PORTIONS - 1) / (threads * PORTIONS)));
  std::atomic<int64_t> next = 0;
  const auto caller = std::this_thread::get_id();
  const auto start = Clock::now();
  auto done = start;
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(portion)) < count;) work(begin, std::min(begin + portion, count));
    if (std::this_thread::get_id() == caller) done = Clock::now();
  });
  Patience::waited(Clock::now() - done, done - start);
}

}  // namespace leace_fast::threads
