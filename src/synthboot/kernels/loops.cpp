// All loops of this package, compiled once for each kind of processor: `attend_avx2` and so on.
// library.py calls those of the best kind that this machine has.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define JOINED(name, processor) name##_##processor
#define NAMED(name, processor) JOINED(name, processor)
#define EXPORT(name) NAMED(name, PROCESSOR)  // an exported loop's name

// clang does not let vectors.h see what a pragma turns on, GCC knows these kinds from 11 on
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define SEVERAL_KINDS

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define PROCESSOR avx512
#include "kind.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define PROCESSOR avx2
#include "kind.h"
#pragma GCC pop_options
#endif

#define PROCESSOR baseline
#include "kind.h"

// The best kind of processor that this machine has.
extern "C" const char* processor() {
#ifdef SEVERAL_KINDS
  // one by one: as x86-64-v3 and v4 GCC asks for them from 12 on
#define HAS(feature) __builtin_cpu_supports(feature)
  __builtin_cpu_init();
  const bool v3 = HAS("avx2") && HAS("bmi") && HAS("bmi2") && HAS("f16c") && HAS("fma") &&
                  HAS("lzcnt") && HAS("movbe");
  const bool v4 = v3 && HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") &&
                  HAS("avx512dq") && HAS("avx512vl");
  if (v4) return "avx512";
  if (v3) return "avx2";
#endif
  return "baseline";
}
