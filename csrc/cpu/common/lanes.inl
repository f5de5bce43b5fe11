// The numbers of one register at a time, VECTOR_BYTES of them: how they are read, written and summed. Larger vectors
// than the registers would do as well, but compilers pass them through memory, at a twentieth of the speed.
//
// Included inside the namespace of each instruction set, after VECTOR_BYTES and, for the intrinsics, <immintrin.h>.

template <typename Number>
struct Lanes {
  static constexpr int count = VECTOR_BYTES / sizeof(Number);
  typedef Number type __attribute__((vector_size(VECTOR_BYTES)));
};
template <typename Number>
using Vector = typename Lanes<Number>::type;

typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t HalfBits __attribute__((vector_size(VECTOR_BYTES / 2)));

template <typename To, typename From>
INLINE To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <typename T>
INLINE T read(const void* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <typename T>
INLINE void write(T value, void* to) {
  __builtin_memcpy(to, &value, sizeof value);
}

// ------------------------------------------------------------------ from the dtype of rows, and back

INLINE Vector<float> load(const float* from) { return read<Vector<float>>(from); }
INLINE Vector<double> load(const double* from) { return read<Vector<double>>(from); }
INLINE void store(Vector<float> lanes, float* to) { write(lanes, to); }
INLINE void store(Vector<double> lanes, double* to) { write(lanes, to); }

// To the nearest, ties to even; NaN stays NaN. The processor's own instruction takes subnormal numbers for zeros.
#if defined(__AVX512F__)
INLINE Vector<float> load(const bfloat16* from) {
  return as<Vector<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(read<__m256i>(from)), 16));
}
INLINE void store(Vector<float> lanes, bfloat16* to) {
  const Bits bits = as<Bits>(lanes);
  const __m512i rounded = as<__m512i>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(as<__m512>(lanes), as<__m512>(lanes), _CMP_UNORD_Q);
  write(_mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, rounded, _mm512_set1_epi32(0x7fc0))), to);
}
#else
INLINE Vector<float> load(const bfloat16* from) {
  return as<Vector<float>>(__builtin_convertvector(read<HalfBits>(from), Bits) << 16);
}
INLINE void store(Vector<float> lanes, bfloat16* to) {
  const Bits bits = as<Bits>(lanes);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits is_nan = as<Bits>(lanes != lanes);
  write(__builtin_convertvector((is_nan & 0x7fc0u) | (~is_nan & rounded), HalfBits), to);
}
#endif

#if defined(__AVX512F__)
INLINE Vector<float> load(const float16* from) { return as<Vector<float>>(_mm512_cvtph_ps(read<__m256i>(from))); }
INLINE void store(Vector<float> lanes, float16* to) {
  write(_mm512_cvtps_ph(as<__m512>(lanes), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), to);
}
#elif defined(__F16C__)
INLINE Vector<float> load(const float16* from) {
  return as<Vector<float>>(_mm256_cvtph_ps(read<__m128i>(from)));
}
INLINE void store(Vector<float> lanes, float16* to) {
  write(_mm256_cvtps_ph(as<__m256>(lanes), _MM_FROUND_TO_NEAREST_INT), to);
}
#else
INLINE Bits choose(Bits condition, Bits yes, Bits no) { return (condition & yes) | (~condition & no); }

INLINE Vector<float> load(const float16* from) {
  const Bits bits = __builtin_convertvector(read<HalfBits>(from), Bits);
  const Bits sign = (bits & 0x8000u) << 16;
  const Bits magnitude = (bits & 0x7fffu) << 13;                              // in place, but for the exponent's bias
  const Bits finite = as<Bits>(as<Vector<float>>(magnitude) * 0x1p112f);  // exact, also from subnormals
  const Bits special = as<Bits>(magnitude >= 0x0f800000u);
  return as<Vector<float>>(choose(special, magnitude | 0x7f800000u, finite) | sign);
}
INLINE void store(Vector<float> lanes, float16* to) {
  const Bits bits = as<Bits>(lanes);
  const Bits magnitude = bits & 0x7fffffffu;
  const Bits normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // The last place of 0.5f is the smallest float16, so the sum rounds there.
  const Bits subnormal = as<Bits>(as<Vector<float>>(magnitude) + 0.5f) - 0x3f000000u;
  Bits result = choose(as<Bits>(magnitude < 0x38800000u), subnormal, normal);  // 2^-14
  result = choose(as<Bits>(magnitude >= 0x477ff000u), Bits{} + 0x7c00u, result);  // 65520 and more
  result = choose(as<Bits>(magnitude > 0x7f800000u), Bits{} + 0x7e00u, result);
  write(__builtin_convertvector(result | ((bits >> 16) & 0x8000u), HalfBits), to);
}
#endif

// The first `count` numbers; the other lanes are zero, and are not written.
template <typename Row>
INLINE Vector<Compute<Row>> load_part(const Row* from, int64_t count) {
  Row part[Lanes<Compute<Row>>::count] = {};
  __builtin_memcpy(part, from, count * sizeof(Row));
  return load(part);
}

template <typename Row>
INLINE void store_part(Vector<Compute<Row>> lanes, Row* to, int64_t count) {
  Row part[Lanes<Compute<Row>>::count];
  store(lanes, part);
  __builtin_memcpy(to, part, count * sizeof(Row));
}

// The same of rows that may go on for longer.
template <typename Row>
INLINE void store_some(Vector<Compute<Row>> lanes, Row* to, int64_t count) {
  if (count >= Lanes<Compute<Row>>::count)
    store(lanes, to);
  else
    store_part(lanes, to, count);
}

// The sum of the lanes, by halves.
template <typename Number>
INLINE Number sum(Vector<Number> lanes) {
  Number parts[Lanes<Number>::count];
  write(lanes, parts);
  for (int width = Lanes<Number>::count / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}
