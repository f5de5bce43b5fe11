/* What a program in C needs to erase a concept from rows: compiled, run and read by tests/csrc/test_c_api.py. */
#include <stdio.h>

#include "leace_fast.h"

int main(void) {
  /* Reads the first column, takes it away; the point (1, 0, 0) stays where it is. */
  const float left_t[3] = {1, 0, 0}, right[3] = {1, 0, 0}, mean[3] = {1, 0, 0}, weight[3] = {1, 2, 3};
  const leace_fast_factors factors = {left_t, right, mean, 3, 1, 1};
  const leace_fast_norm norm = {0, weight, NULL, 0.0, 0.0};
  const int64_t index[2] = {0, -1}, unknown[2] = {0, 7};
  float x[2][3] = {{5, 2, 3}, {6, 8, 0}}, y[2][3] = {{-1, -1, -1}}, summed[2][3];

  if (leace_fast_instruction_set() == NULL) {
    if (leace_fast_project(LEACE_FAST_FLOAT32, x, 3, y, 3, 2, &factors, NULL, NULL) != LEACE_FAST_BAD_CPU) return 5;
    if (leace_fast_add_norm_project(LEACE_FAST_FLOAT32, x, 3, x, 3, summed, 3, y, 3, 2, &norm, &factors, NULL, NULL) !=
        LEACE_FAST_BAD_CPU)
      return 6;
    if (leace_fast_packed_size(3, 64, 1) != 0) return 7;
    printf("refused, and nothing written: %g %g %g\n", y[0][0], y[0][1], y[0][2]);
    return 0;
  }
  if (leace_fast_project(LEACE_FAST_FLOAT32, x, 3, y, 3, 2, &factors, NULL, NULL) != LEACE_FAST_OK) return 1;
  printf("erased %g %g %g, %g %g %g\n", y[0][0], y[0][1], y[0][2], y[1][0], y[1][1], y[1][2]);

  if (leace_fast_project(LEACE_FAST_FLOAT32, x, 3, y, 3, 2, &factors, index, NULL) != LEACE_FAST_OK) return 2;
  printf("the first alone %g %g %g, %g %g %g\n", y[0][0], y[0][1], y[0][2], y[1][0], y[1][1], y[1][2]);

  if (leace_fast_project(LEACE_FAST_FLOAT32, x, 3, y, 3, 2, &factors, unknown, NULL) != LEACE_FAST_BAD_INDEX) return 3;

  if (leace_fast_add_norm_project(LEACE_FAST_FLOAT32, x, 3, x, 3, summed, 3, y, 3, 2, &norm, &factors, NULL, NULL))
    return 4;
  printf("summed %g, normed and erased %g %g %g\n", summed[1][1], y[1][0], y[1][1], y[1][2]);
  printf("on %s\n", leace_fast_instruction_set());
  return 0;
}
