// Memory in huge pages, where the system offers them: touching fresh memory page by page costs more than writing it.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace leace_fast::cpu {

constexpr int64_t HUGE_PAGE = 2 << 20;

// Asks for huge pages for those that lie within `memory`: a hint, without effect where it is not taken, or where the
// memory has been touched.
inline void ask_for_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto start = reinterpret_cast<intptr_t>(memory);
  const intptr_t begin = (start + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE, end = (start + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace leace_fast::cpu
