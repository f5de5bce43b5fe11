// Up to 16 numbers of a row as float32, the others zero: included by moments.cpp inside the namespaces of AVX512-BF16
// and AMX.

inline __m512 load(const float* x, __mmask16 columns) { return _mm512_maskz_loadu_ps(columns, x); }
inline __m512 load(const bfloat16* x, __mmask16 columns) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, x)), 16));
}
inline __m512 load(const float16* x, __mmask16 columns) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(columns, x));
}
