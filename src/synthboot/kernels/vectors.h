// Sixteen floats at a time: what the loops of this package are made of.
//
// On every processor they are sixteen, in as many registers as that takes, so that sums are taken
// in the same order everywhere. loops.cpp includes this once for each kind of processor.

// What one register holds. A wider vector the compiler would keep in memory.
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));

// the same wherever in memory they begin
typedef float floats_at __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t shorts_at __attribute__((vector_size(2 * LANES), aligned(2)));

// Two vectors, taken as one of twice the lanes.
template <class V>
struct Pair {
  V low, high;
};

#if LANES == 16
typedef floats f16;
typedef ints i16;
#elif LANES == 8
typedef Pair<floats> f16;
typedef Pair<ints> i16;
#else
typedef Pair<Pair<floats> > f16;
typedef Pair<Pair<ints> > i16;
#endif

// ---- arithmetic on pairs; the compiler has it for single vectors

#define ON_PAIRS(op)                                                              \
  template <class V>                                                              \
  INLINE auto operator op(Pair<V> a, Pair<V> b)->Pair<decltype(a.low op b.low)> { \
    return {a.low op b.low, a.high op b.high};                                    \
  }                                                                               \
  template <class V>                                                              \
  INLINE Pair<V> operator op(Pair<V> a, float b) {                                \
    return {a.low op b, a.high op b};                                             \
  }                                                                               \
  template <class V>                                                              \
  INLINE Pair<V> operator op(float a, Pair<V> b) {                                \
    return {a op b.low, a op b.high};                                             \
  }
ON_PAIRS(+)
ON_PAIRS(-)
ON_PAIRS(*)
ON_PAIRS(/)
#undef ON_PAIRS

template <class V>
INLINE Pair<V> operator-(Pair<V> v) {
  return {-v.low, -v.high};
}

template <class V>
INLINE Pair<V>& operator+=(Pair<V>& a, Pair<V> b) {
  return a = a + b;
}

// ---- comparisons; every lane of a mask is 0 or -1

INLINE ints greater(floats a, floats b) { return a > b; }
INLINE ints at_least(floats a, floats b) { return a >= b; }
INLINE floats choose(ints mask, floats a, floats b) { return mask ? a : b; }

template <class V>
INLINE auto greater(Pair<V> a, Pair<V> b) -> Pair<decltype(greater(a.low, b.low))> {
  return {greater(a.low, b.low), greater(a.high, b.high)};
}

template <class V>
INLINE auto at_least(Pair<V> a, Pair<V> b) -> Pair<decltype(at_least(a.low, b.low))> {
  return {at_least(a.low, b.low), at_least(a.high, b.high)};
}

template <class M, class V>
INLINE Pair<V> choose(Pair<M> mask, Pair<V> a, Pair<V> b) {
  return {choose(mask.low, a.low, b.low), choose(mask.high, a.high, b.high)};
}

template <class V>
INLINE V larger(V a, V b) {
  return choose(greater(a, b), a, b);
}

// A bit for every lane of a mask, the first one lowest.
INLINE uint32_t bits(ints v) {
#if LANES == 16
  return _mm512_movepi32_mask((__m512i)v);
#elif LANES == 8
  return _mm256_movemask_ps((__m256)v);
#elif defined(__SSE__)
  return _mm_movemask_ps((__m128)v);
#else
  return (v[0] & 1) | (v[1] & 2) | (v[2] & 4) | (v[3] & 8);
#endif
}

template <class M>
INLINE uint32_t bits(Pair<M> v) {
  return bits(v.low) | bits(v.high) << sizeof(M) / 4;
}

INLINE bool any(ints v) { return bits(v) != 0; }

template <class M>
INLINE bool any(Pair<M> v) {
  return any(v.low) || any(v.high);
}

// ---- all lanes alike, and all together

INLINE void fill(floats& v, float x) { v = x - floats{}; }

template <class V>
INLINE void fill(Pair<V>& v, float x) {
  fill(v.low, x);
  fill(v.high, x);
}

INLINE f16 splat(float x) {
  f16 v;
  fill(v, x);
  return v;
}

INLINE float sum(floats v) {
#if LANES == 16
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#elif LANES == 8
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
  return (v[0] + v[1]) + (v[2] + v[3]);
}

template <class V>
INLINE float sum(Pair<V> v) {
  return sum(v.low + v.high);
}

INLINE float largest_lane(floats v) {
  float top = v[0];
  for (int lane = 1; lane < LANES; lane++) top = v[lane] > top ? v[lane] : top;
  return top;
}

template <class V>
INLINE float largest_lane(Pair<V> v) {
  return largest_lane(larger(v.low, v.high));
}

// ---- memory
//
// Arrays are of floats or of bfloat16, whose bits (uint16_t) are the upper half of a float's.
// Stores round to the nearest bfloat16, to even where there are two.

INLINE void get(floats& v, const float* p) { v = *(const floats_at*)p; }

INLINE void get(floats& v, const uint16_t* p) {
  const ints bits = __builtin_convertvector(*(const shorts_at*)p, ints) << 16;
  v = (floats)bits;
}

INLINE void put(float* p, floats v) { *(floats_at*)p = v; }

INLINE void put(uint16_t* p, floats v) {
  const ints bits = (ints)v;
  *(shorts_at*)p = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, shorts);
}

template <class V, class T>
INLINE void get(Pair<V>& v, const T* p) {
  get(v.low, p);
  get(v.high, p + sizeof(V) / 4);
}

template <class V, class T>
INLINE void put(T* p, Pair<V> v) {
  put(p, v.low);
  put(p + sizeof(V) / 4, v.high);
}

template <class T>
INLINE f16 load(const T* p) {
  f16 v;
  get(v, p);
  return v;
}

template <class T>
INLINE void store(T* p, f16 v) {
  put(p, v);
}

INLINE float load_one(const float* p) { return *p; }

INLINE float load_one(const uint16_t* p) {
  const uint32_t bits = (uint32_t)*p << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE void store_one(float* p, float value) { *p = value; }

INLINE void store_one(uint16_t* p, float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  *p = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Of half precision, bit by bit: C++ has no such type before GCC 12 and clang 15.
INLINE float load_half(const uint16_t* p) {
  const uint32_t sign = (uint32_t)(*p & 0x8000) << 16, magnitude = *p & 0x7fff;
  const uint32_t exponent = magnitude >> 10, fraction = magnitude & 0x3ff;
  uint32_t bits = sign | ((magnitude << 13) + (112u << 23));  // the exponents' biases differ by 112
  if (exponent == 31) bits = sign | 0x7f800000u | fraction << 13;
  float value;
  memcpy(&value, &bits, 4);
  if (exponent) return value;
  const float subnormal = (float)fraction * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

INLINE void get_halves(floats& v, const uint16_t* p) {
#if LANES == 16
  v = (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif LANES == 8 && defined(__F16C__)
  v = (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  for (int lane = 0; lane < LANES; lane++) v[lane] = load_half(p + lane);
#endif
}

template <class V>
INLINE void get_halves(Pair<V>& v, const uint16_t* p) {
  get_halves(v.low, p);
  get_halves(v.high, p + sizeof(V) / 4);
}

INLINE f16 load_halves(const uint16_t* p) {
  f16 v;
  get_halves(v, p);
  return v;
}

// ---- what several loops are made of

INLINE float maximum(const float* x, int64_t n) {
  f16 lanes = splat(-INFINITY);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) lanes = larger(lanes, load(x + i));
  float top = largest_lane(lanes);
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

INLINE float dot(const float* a, const float* b, int64_t n) {
  // two sums, so that an addition need not wait for the one before
  f16 sum0 = splat(0), sum1 = splat(0);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    sum0 += load(a + i) * load(b + i);
    sum1 += load(a + i + 16) * load(b + i + 16);
  }
  for (; i + 16 <= n; i += 16) sum0 += load(a + i) * load(b + i);
  float s = sum(sum0 + sum1);
  for (; i < n; i++) s += a[i] * b[i];
  return s;
}

// e^x with a relative error below 2e-7 between -87 and 0; 0 below that.
INLINE floats exponential(floats x) {
  const ints underflows = x < -87.0f;

  // x = n log 2 + f: adding and subtracting 1.5 x 2^23 rounds to the nearest integer
  const floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const floats f = (x - n * 0.693145752f) - n * 1.42860677e-6f;

  floats p = 1.9875691500e-4f * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;

  const ints power = (__builtin_convertvector(n, ints) + 127) << 23;  // the bits of 2^n
  const floats value = p * (floats)power;
  return underflows ? floats{} : value;
}

template <class V>
INLINE Pair<V> exponential(Pair<V> x) {
  return {exponential(x.low), exponential(x.high)};
}
