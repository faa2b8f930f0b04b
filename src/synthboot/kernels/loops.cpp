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

// clang does not let vectors.h see what a pragma turns on
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
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
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "avx512";
  if (__builtin_cpu_supports("x86-64-v3")) return "avx2";
#endif
  return "baseline";
}
