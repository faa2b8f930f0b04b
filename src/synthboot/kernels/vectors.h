// Sixteen floats at a time: what the loops of this package are made of.
//
// Everything here is inlined into the loops, which are compiled on x86 Linux for AVX-512, AVX2 and
// the baseline; the machine picks one when the library is loaded.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

// aligned(4), aligned(2): wherever in memory they begin
typedef float f16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint16_t u16 __attribute__((vector_size(32), aligned(2)));

INLINE f16 splat(float x) { return f16{} + x; }

INLINE float sum(f16 v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  return (v[0] + v[1]) + (v[2] + v[3]);
}

INLINE bool any(i16 v) {
  v |= __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v |= __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  return (v[0] | v[1] | v[2] | v[3]) != 0;
}

// Arrays are of floats or of bfloat16, whose bits (uint16_t) are the upper half of a float's.
// Stores round to the nearest bfloat16, to even where there are two.

INLINE f16 load(const float* p) { return *(const f16*)p; }

INLINE f16 load(const uint16_t* p) {
  const i16 bits = __builtin_convertvector(*(const u16*)p, i16) << 16;
  return (f16)bits;
}

INLINE void store(float* p, f16 v) { *(f16*)p = v; }

INLINE void store(uint16_t* p, f16 v) {
  const i16 bits = (i16)v;
  *(u16*)p = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, u16);
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

INLINE float maximum(const float* x, int64_t n) {
  f16 lanes = splat(-INFINITY);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) lanes = lanes > load(x + i) ? lanes : load(x + i);
  float top = -INFINITY;
  for (int lane = 0; lane < 16; lane++) top = lanes[lane] > top ? lanes[lane] : top;
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

INLINE float dot(const float* a, const float* b, int64_t n) {
  // two sums, so that an addition need not wait for the one before
  f16 sum0 = {}, sum1 = {};
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
INLINE f16 exponential(f16 x) {
  const i16 underflows = x < splat(-87.0f);

  // x = n log 2 + f: adding and subtracting 1.5 x 2^23 rounds to the nearest integer
  const f16 scaled = x * 1.44269504f;
  const f16 magic = splat(12582912.0f);
  const f16 n = (scaled + magic) - magic;
  const f16 f = (x - n * 0.693145752f) - n * 1.42860677e-6f;

  f16 p = splat(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;

  const i16 power = (__builtin_convertvector(n, i16) + 127) << 23;  // the bits of 2^n
  const f16 value = p * (f16)power;
  return underflows ? splat(0.0f) : value;
}
