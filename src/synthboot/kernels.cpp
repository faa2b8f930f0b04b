// The inner loops that numpy and torch are slow at, as one optional extension module. `kernels.py` says what each does,
// checks shapes and has no need of this file: where it is not built, callers take their Python path, to the same result.
//
// Plain C++ on buffers, the limited Python API, no torch headers: one build serves every Python from 3.11 and every torch.
// On x86 Linux each loop is compiled for AVX-512, AVX2 and the baseline, and the machine picks when the module is loaded.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float f16 __attribute__((vector_size(64), aligned(4)));  // sixteen floats, wherever they lie
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint16_t u16 __attribute__((vector_size(32), aligned(2)));

INLINE f16 splat(float x) { return f16{} + x; }

INLINE float total(f16 v) {
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  return (v[0] + v[1]) + (v[2] + v[3]);
}

INLINE bool any(i16 v) {
  v |= __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v |= __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  return (v[0] | v[1] | v[2] | v[3]) != 0;
}

INLINE f16 load(const float* p) { return *(const f16*)p; }

INLINE f16 load(const uint16_t* p) {  // bfloat16: the upper half of a float
  i16 wide = __builtin_convertvector(*(const u16*)p, i16) << 16;
  return (f16)wide;
}

INLINE void store(float* p, f16 v) { *(f16*)p = v; }

INLINE void store(uint16_t* p, f16 v) {  // rounded to the nearest bfloat16, to even where there are two
  const i16 bits = (i16)v;
  *(u16*)p = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, u16);
}

INLINE float one(const float* p) { return *p; }

INLINE float one(const uint16_t* p) {
  uint32_t bits = (uint32_t)*p << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE float largest(const float* x, int64_t n) {
  f16 tops = splat(-INFINITY);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) tops = tops > load(x + i) ? tops : load(x + i);
  float top = -INFINITY;
  for (int l = 0; l < 16; l++) top = tops[l] > top ? tops[l] : top;
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

INLINE float dot(const float* a, const float* b, int64_t n) {
  f16 sum0 = {}, sum1 = {};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    sum0 += load(a + i) * load(b + i);
    sum1 += load(a + i + 16) * load(b + i + 16);
  }
  for (; i + 16 <= n; i += 16) sum0 += load(a + i) * load(b + i);
  float s = total(sum0 + sum1);
  for (; i < n; i++) s += a[i] * b[i];
  return s;
}

// Calls `met(j)` for the scores of a line that are not below `bar`, in order; `met` may raise the bar.
template <class T, class F>
INLINE void scan(const T* line, int64_t columns, const float& bar, F met) {
  int64_t j = 0;
  for (; j + 64 <= columns; j += 64) {
    const f16 a = load(line + j), b = load(line + j + 16), c = load(line + j + 32), d = load(line + j + 48);
    const f16 ab = a > b ? a : b, cd = c > d ? c : d, most = ab > cd ? ab : cd;
    if (any(most >= splat(bar)))
      for (int64_t n = j; n < j + 64; n++)
        if (one(line + n) >= bar) met(n);
  }
  for (; j < columns; j++)
    if (one(line + j) >= bar) met(j);
}

// Queries, members, and scores of theirs that are off by at most `margin`. There is room for `stride` columns in a line.
struct Block {
  int64_t queries, columns, stride, dim;
  float margin;
  const float *x, *members;
};

// ---- the k best of a query, best first, equal ones by number

struct Best {
  int64_t k, first;
  const int64_t *rows, *own;
  int64_t* index;
  float *score, *top;
};

INLINE void insert(int64_t* index, float* score, int64_t k, int64_t number, float value) {
  if (value < score[k - 1] || (value == score[k - 1] && number > index[k - 1] && index[k - 1] >= 0)) return;
  int64_t place = k - 1;
  while (place > 0 && (score[place - 1] < value || (score[place - 1] == value && index[place - 1] > number))) {
    score[place] = score[place - 1];
    index[place] = index[place - 1];
    place--;
  }
  score[place] = value;
  index[place] = number;
}

// The k-th largest of a line, one column left out; -inf where there are fewer. `top` holds k floats.
template <class T>
INLINE float kth(const T* line, int64_t columns, int64_t own, int64_t k, float* top) {
  for (int64_t n = 0; n < k; n++) top[n] = -INFINITY;
  scan(line, columns, top[k - 1], [&](int64_t j) __attribute__((always_inline)) {
    const float value = one(line + j);
    if (j == own) return;
    int64_t place = k - 1;
    for (; place > 0 && top[place - 1] < value; place--) top[place] = top[place - 1];
    top[place] = value;
  });
  return top[k - 1];
}

template <class T>
INLINE void offer(const Block& block, const Best& best, const T* scores) {
  const int64_t k = best.k, dim = block.dim;
  for (int64_t i = 0; i < block.queries; i++) {
    if (i + 1 < block.queries) {
      const int64_t next = best.rows[i + 1];
      for (int64_t b = 0; b < dim; b += 16) __builtin_prefetch(block.x + next * dim + b);
      for (int64_t b = 0; b < k; b += 8) __builtin_prefetch(best.index + next * k + b), __builtin_prefetch(best.score + next * k + b);
    }
    const int64_t row = best.rows[i], own = best.own[row] - best.first;
    int64_t* index = best.index + row * k;
    float* score = best.score + row * k;
    const T* line = scores + i * block.stride;
    float bar = score[k - 1] - block.margin;
    if (score[k - 1] == -INFINITY)  // nothing to beat yet: what can be among the k best by these scores
      bar = kth(line, block.columns, own, k, best.top) - 2 * block.margin;
    scan(line, block.columns, bar, [&](int64_t j) __attribute__((always_inline)) {
      if (j == own) return;
      insert(index, score, k, best.first + j, dot(block.x + row * dim, block.members + j * dim, dim));
      if (score[k - 1] - block.margin > bar) bar = score[k - 1] - block.margin;
    });
  }
}

FAST static void offer_float(const Block& b, const Best& k, const float* scores) { offer(b, k, scores); }
FAST static void offer_bfloat(const Block& b, const Best& k, const uint16_t* scores) { offer(b, k, scores); }

// ---- the members that are at most `reach` less similar to a query than its nearest, that one first

template <class T>
INLINE void within(const Block& block, float reach, const T* scores, int64_t* counts, std::vector<int32_t>& found) {
  for (int64_t i = 0; i < block.queries; i++) {
    const T* line = scores + i * block.stride;
    const float* x = block.x + i * block.dim;
    float bar = -INFINITY, nearest = -INFINITY;
    int64_t home = 0;
    scan(line, block.columns, bar, [&](int64_t j) __attribute__((always_inline)) {
      if (one(line + j) > bar) bar = one(line + j);
    });
    bar -= 2 * block.margin;
    scan(line, block.columns, bar, [&](int64_t j) __attribute__((always_inline)) {
      const float value = dot(x, block.members + j * block.dim, block.dim);
      if (value > nearest) nearest = value, home = j;
    });
    const size_t before = found.size();
    found.push_back((int32_t)home);
    if (reach >= 0) {
      bar = nearest - reach - block.margin;
      scan(line, block.columns, bar, [&](int64_t j) __attribute__((always_inline)) {
        if (j != home && dot(x, block.members + j * block.dim, block.dim) >= nearest - reach) found.push_back((int32_t)j);
      });
    }
    counts[i] = (int64_t)(found.size() - before);
  }
}

FAST static void within_float(const Block& b, float reach, const float* scores, int64_t* counts, std::vector<int32_t>& found) {
  within(b, reach, scores, counts, found);
}
FAST static void within_bfloat(const Block& b, float reach, const uint16_t* scores, int64_t* counts, std::vector<int32_t>& found) {
  within(b, reach, scores, counts, found);
}

// ---- half precision made ready for products

struct Widen {
  int64_t rows, padded, dim;
  const uint16_t* source;  // IEEE half
  float* wide;
  uint16_t* narrow;  // bfloat16, rows of zeros up to `padded`; or none
};

typedef _Float16 h16 __attribute__((vector_size(32), aligned(2)));

INLINE void put(uint16_t* p, float value) {  // to the nearest bfloat16, ties to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  *p = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE void put(float* p, float value) { *p = value; }

// Returns the squared length of the longest row.
INLINE float widen_rows(const Widen& w) {
  float longest = 0;
  for (int64_t r = 0; r < w.rows; r++) {
    const uint16_t* from = w.source + r * w.dim;
    float* wide = w.wide + r * w.dim;
    int64_t d = 0;
    for (; d + 16 <= w.dim; d += 16) {
      const f16 x = __builtin_convertvector(*(const h16*)(from + d), f16);
      *(f16*)(wide + d) = x;
      if (w.narrow) store(w.narrow + r * w.dim + d, x);
    }
    for (; d < w.dim; d++) {
      _Float16 x;
      memcpy(&x, from + d, 2);
      wide[d] = (float)x;
      if (w.narrow) put(w.narrow + r * w.dim + d, wide[d]);
    }
    const float length = dot(wide, wide, w.dim);
    if (length > longest) longest = length;
  }
  if (w.narrow) memset(w.narrow + w.rows * w.dim, 0, (w.padded - w.rows) * w.dim * 2);
  return longest;
}

FAST static float widen_all(const Widen& w) { return widen_rows(w); }

// ---- one token of attention for every row of a batch

// The cache of a layer: keys in blocks of sixteen positions, (row, head, block, dim, 16), so that sixteen scores come from
// contiguous loads; values as (row, head, position, dim). T is float, or uint16_t for bfloat16.
template <class T>
struct Attention {
  int64_t rows, heads, kv_heads, dim, window;
  float eps;
  const float *qkv, *q_norm, *k_norm, *cosine, *sine;  // (row, heads + 2 kv_heads, dim), (dim), (dim), (row, dim), (row, dim)
  const int64_t* position;
  T *keys, *values;
  float *out, *work;  // (row, heads, dim), and 4 * (window + dim) floats of room
};

// Normalised (where there is a weight), rotated, scaled.
INLINE void turn(const float* x, const float* weight, float eps, const float* cosine, const float* sine, int64_t dim, float scale,
                 float* out) {
  float r = scale;
  if (weight) r = scale / std::sqrt(dot(x, x, dim) / dim + eps);
  const int64_t half = dim / 2;
  for (int64_t d = 0; d < half; d++) {
    const float a = x[d] * r * (weight ? weight[d] : 1), b = x[d + half] * r * (weight ? weight[d + half] : 1);
    out[d] = a * cosine[d] - b * sine[d];
    out[d + half] = b * cosine[d + half] + a * sine[d + half];
  }
}

INLINE f16 exponential(f16 x) {  // relative error below 2e-7 between -87 and 0; 0 below that
  const i16 gone = x < splat(-87.0f);
  const f16 scaled = x * 1.44269504f;
  const f16 magic = splat(12582912.0f);
  const f16 n = (scaled + magic) - magic;  // rounded
  const f16 f = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  f16 p = splat(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const i16 power = (__builtin_convertvector(n, i16) + 127) << 23;
  const f16 value = p * (f16)power;
  return gone ? splat(0.0f) : value;
}

// G query heads that share a key head, V vectors of sixteen in a head.
template <int G, int V, class T>
INLINE void attend_heads(const T* keys, const T* values, int64_t count, int64_t window, const float* q, float* weights, float* out) {
  const int64_t dim = 16 * V;
  float most[G];
  for (int g = 0; g < G; g++) most[g] = -INFINITY;
  for (int64_t start = 0; start < count; start += 16) {
    const T* block = keys + start * dim;
    f16 score[G] = {};
    for (int64_t d = 0; d < dim; d++) {
      const f16 key = load(block + d * 16);
      for (int g = 0; g < G; g++) score[g] += q[g * dim + d] * key;
    }
    for (int g = 0; g < G; g++) {
      for (int l = 0; l < 16; l++)
        if (start + l >= count) score[g][l] = -INFINITY;
      *(f16*)(weights + g * window + start) = score[g];
      for (int l = 0; l < 16; l++)
        if (score[g][l] > most[g]) most[g] = score[g][l];
    }
  }
  float sum[G];
  for (int g = 0; g < G; g++) {
    f16 sums = {};
    for (int64_t start = 0; start < count; start += 16) {
      f16* place = (f16*)(weights + g * window + start);
      *place = exponential(*place - most[g]);
      sums += *place;
    }
    sum[g] = total(sums);
  }
  f16 mixed[G][V] = {};
  for (int64_t p = 0; p < count; p++)
    for (int v = 0; v < V; v++) {
      const f16 value = load(values + p * dim + 16 * v);
      for (int g = 0; g < G; g++) mixed[g][v] += weights[g * window + p] * value;
    }
  for (int g = 0; g < G; g++)
    for (int v = 0; v < V; v++) *(f16*)(out + g * dim + 16 * v) = mixed[g][v] * (1 / sum[g]);
}

template <int V, class T>
INLINE void attend(const Attention<T>& a) {
  const int64_t dim = 16 * V, group = a.heads / a.kv_heads, joined = (a.heads + 2 * a.kv_heads) * dim;
  const float scale = 1 / std::sqrt((float)dim);
  float *weights = a.work, *q = a.work + 4 * a.window;
  for (int64_t r = 0; r < a.rows; r++) {
    const int64_t at = a.position[r];
    const float *cosine = a.cosine + r * dim, *sine = a.sine + r * dim;
    for (int64_t h = 0; h < a.kv_heads; h++) {
      T* keys = a.keys + (r * a.kv_heads + h) * a.window * dim;
      T* values = a.values + (r * a.kv_heads + h) * a.window * dim;
      const float* k = a.qkv + r * joined + (a.heads + h) * dim;
      const float* v = k + a.kv_heads * dim;
      turn(k, a.k_norm, a.eps, cosine, sine, dim, 1, q);
      for (int64_t d = 0; d < dim; d++) put(keys + (at / 16) * 16 * dim + d * 16 + at % 16, q[d]);
      for (int64_t d = 0; d < dim; d++) put(values + at * dim + d, v[d]);
      for (int64_t g = 0; g < group;) {
        const int64_t head = h * group + g, left = group - g;
        const int together = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (int n = 0; n < together; n++)
          turn(a.qkv + r * joined + (head + n) * dim, a.q_norm, a.eps, cosine, sine, dim, scale, q + n * dim);
        float* out = a.out + (r * a.heads + head) * dim;
        if (together == 4)
          attend_heads<4, V>(keys, values, at + 1, a.window, q, weights, out);
        else if (together == 2)
          attend_heads<2, V>(keys, values, at + 1, a.window, q, weights, out);
        else
          attend_heads<1, V>(keys, values, at + 1, a.window, q, weights, out);
        g += together;
      }
    }
  }
}

template <class T>
INLINE void attend_any(const Attention<T>& a) {
  if (a.dim == 16) attend<1>(a);
  if (a.dim == 32) attend<2>(a);
  if (a.dim == 64) attend<4>(a);
  if (a.dim == 128) attend<8>(a);
}

FAST static void attend_float(const Attention<float>& a) { attend_any(a); }
FAST static void attend_bfloat(const Attention<uint16_t>& a) { attend_any(a); }

// ---- a token for every row

struct Draw {
  int64_t rows, vocab;
  float temperature, top_p;
  const float* logits;
  const uint64_t *seeds, *steps;
  int64_t* token;
  float *logprob, *work;  // (row) each, and room for `vocab` floats rounded up to sixteen
};

// 24 bits in [0, 1) by splitmix64 of (seed, step, attempt): `lm.sample.uniforms`.
INLINE float uniform(uint64_t seed, uint64_t step, uint64_t attempt) {
  uint64_t x = seed + (step * 64 + attempt + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  return (float)(x >> 40) * 0x1p-24f;
}

INLINE void draw_rows(const Draw& d) {
  const int64_t whole = d.vocab / 16 * 16;
  for (int64_t r = 0; r < d.rows; r++) {
    const float* logits = d.logits + r * d.vocab;
    const float top = largest(logits, d.vocab);
    int64_t j;
    const float sharp = d.temperature > 0 ? 1 / d.temperature : 1;
    double mass = 0, plain = 0;
    for (j = 0; j < d.vocab; j += 16) {  // the last sixteen are filled up with nothing
      f16 x = splat(-INFINITY);
      if (j < whole)
        x = load(logits + j);
      else
        for (int64_t l = j; l < d.vocab; l++) x[l - j] = logits[l];
      const f16 e = exponential((x - top) * sharp);
      *(f16*)(d.work + j) = e;
      mass += total(e);
      if (sharp != 1) plain += total(exponential(x - top));
    }
    if (sharp == 1) plain = mass;
    int64_t chosen = -1;
    if (d.temperature > 0)
      for (int attempt = 0; attempt < 64 && chosen < 0; attempt++) {
        const double wanted = uniform(d.seeds[r], d.steps[r], attempt) * mass;
        double sum = 0;
        int64_t place = 0;
        for (; place + 16 < d.vocab; place += 16) {
          const double next = sum + total(*(const f16*)(d.work + place));
          if (next > wanted) break;
          sum = next;
        }
        for (; place + 1 < d.vocab; place++) {
          sum += d.work[place];
          if (sum > wanted) break;
        }
        const float own = d.work[place];
        double likelier = 0;
        for (j = 0; j < d.vocab; j += 16) {
          const f16 e = *(const f16*)(d.work + j);
          likelier += total(e > splat(own) ? e : splat(0.0f));
        }
        if (own > 0 && likelier < d.top_p * mass) chosen = place;
      }
    for (j = 0; chosen < 0; j++)  // the likeliest: greedy, or a top_p below one in 2^64
      if (logits[j] == top) chosen = j;
    d.token[r] = chosen;
    d.logprob[r] = (float)(logits[chosen] - top - std::log(plain));
  }
}

FAST static void draw_all(const Draw& d) { draw_rows(d); }

// ---- softmax turned into the gradient of its cross-entropy

struct Softmax {
  int64_t rows, vocab;
  float scale, z_loss;
  float* logits;
  const int64_t* targets;
  double sums[2];  // of the cross-entropy, of the squared log of the partition function
};

INLINE void softmax_rows(Softmax& s) {
  const int64_t whole = s.vocab / 16 * 16;
  for (int64_t r = 0; r < s.rows; r++) {
    float* x = s.logits + r * s.vocab;
    const float top = largest(x, s.vocab);
    int64_t j;
    const float picked = x[s.targets[r]];
    double mass = 0;
    f16 sum = {};
    for (j = 0; j < whole; j += 16) {
      const f16 e = exponential(load(x + j) - top);
      *(f16*)(x + j) = e;
      sum += e;
      if (j % 4096 == 4080) mass += total(sum), sum = f16{};
    }
    mass += total(sum);
    for (; j < s.vocab; j++) {
      x[j] = std::exp(x[j] - top);
      mass += x[j];
    }
    const double lse = std::log(mass) + top;
    const float factor = (float)(s.scale * (1 + 2 * s.z_loss * lse) / mass);
    for (j = 0; j < whole; j += 16) *(f16*)(x + j) = load(x + j) * factor;
    for (; j < s.vocab; j++) x[j] *= factor;
    x[s.targets[r]] -= s.scale;
    s.sums[0] += lse - picked;
    s.sums[1] += lse * lse;
  }
}

FAST static void softmax_all(Softmax& s) { softmax_rows(s); }

// ---- norms, gates and rotary positions of training, forwards and backwards, one pass over memory each

struct Norm {
  int64_t rows, dim;
  float eps;
  const float *x, *weight, *up;  // up: the gradient of the result; none on the way forwards
  float *out, *scale, *into_weight;  // result or gradient of x; 1 / root mean square of every row; gradient of the weight
};

INLINE void norm_forward(const Norm& n) {
  for (int64_t r = 0; r < n.rows; r++) {
    const float* x = n.x + r * n.dim;
    const float scale = 1 / std::sqrt(dot(x, x, n.dim) / n.dim + n.eps);
    n.scale[r] = scale;
    for (int64_t d = 0; d < n.dim; d++) n.out[r * n.dim + d] = x[d] * scale * n.weight[d];
  }
}

INLINE void norm_backward(const Norm& n) {
  for (int64_t r = 0; r < n.rows; r++) {
    const float *x = n.x + r * n.dim, *up = n.up + r * n.dim;
    const float scale = n.scale[r];
    f16 sums = {};
    float along = 0;
    int64_t d = 0;
    for (; d + 16 <= n.dim; d += 16) {
      const f16 part = load(up + d) * load(x + d);
      sums += part * load(n.weight + d);
      *(f16*)(n.into_weight + d) = load(n.into_weight + d) + part * scale;
    }
    for (; d < n.dim; d++) {
      along += up[d] * x[d] * n.weight[d];
      n.into_weight[d] += up[d] * x[d] * scale;
    }
    along = (along + total(sums)) * scale * scale / n.dim;
    for (d = 0; d < n.dim; d++) n.out[r * n.dim + d] = scale * (up[d] * n.weight[d] - x[d] * along);
  }
}

FAST static void norm_all(const Norm& n) { n.up ? norm_backward(n) : norm_forward(n); }

INLINE f16 sigmoid(f16 x) {
  const f16 e = exponential(x > splat(0.0f) ? -x : x);
  return (x > splat(0.0f) ? splat(1.0f) : e) / (1.0f + e);
}

struct Gate {
  int64_t count;
  const float *gate, *value, *up;
  float *out, *into_value;  // result, or gradients of gate and value
};

INLINE void gate_some(const Gate& g, const float* gate, const float* value, const float* up, float* out, float* into_value) {
  const f16 x = load(gate), s = sigmoid(x);
  if (!g.up) {
    *(f16*)out = x * s * load(value);
    return;
  }
  *(f16*)into_value = load(up) * x * s;
  *(f16*)out = load(up) * load(value) * s * (1.0f + x * (1.0f - s));
}

FAST static void gate_all(const Gate& g) {
  int64_t i = 0;
  for (; i + 16 <= g.count; i += 16)
    gate_some(g, g.gate + i, g.value + i, g.up ? g.up + i : nullptr, g.out + i, g.into_value ? g.into_value + i : nullptr);
  if (i == g.count) return;
  float room[5][16] = {};
  const int64_t left = (g.count - i) * 4;
  memcpy(room[0], g.gate + i, left), memcpy(room[1], g.value + i, left);
  if (g.up) memcpy(room[2], g.up + i, left);
  gate_some(g, room[0], room[1], room[2], room[3], room[4]);
  memcpy(g.out + i, room[3], left);
  if (g.up) memcpy(g.into_value + i, room[4], left);
}

struct Rotate {
  int64_t size[4];  // documents, tokens, heads, numbers of a head
  int64_t from[3], to[3];  // numbers from one document, token, head to the next
  bool shared, back;  // whether all documents have the same angles; whether to turn back
  const float *x, *cos, *sin;
  float* out;
};

FAST static void rotate_all(const Rotate& r) {
  const int64_t dim = r.size[3], half = dim / 2;
  for (int64_t b = 0; b < r.size[0]; b++)
    for (int64_t t = 0; t < r.size[1]; t++) {
      const int64_t angle = ((r.shared ? 0 : b) * r.size[1] + t) * dim;  // the halves of a row of angles are alike
      const float *cos = r.cos + angle, *sin = r.sin + angle;
      for (int64_t h = 0; h < r.size[2]; h++) {
        const float* x = r.x + b * r.from[0] + t * r.from[1] + h * r.from[2];
        float* out = r.out + b * r.to[0] + t * r.to[1] + h * r.to[2];
        int64_t i = 0;
        for (; i + 16 <= half; i += 16) {
          const f16 low = load(x + i), high = load(x + half + i), c = load(cos + i);
          const f16 s = r.back ? -load(sin + i) : load(sin + i);
          store(out + i, low * c - high * s);
          store(out + half + i, high * c + low * s);
        }
        for (; i < half; i++) {
          const float s = r.back ? -sin[i] : sin[i];
          out[i] = x[i] * cos[i] - x[half + i] * s;
          out[half + i] = x[half + i] * cos[i] + x[i] * s;
        }
      }
    }
}

// ---- the softmax of causal attention while a model trains, and its gradient, in place

// (line, group x rows, columns): rows of the same document and key head, once for every query head that shares it. Row i of a
// group is token `first + i`, and sees the columns up to itself that `mask` (document, token, token) allows.
template <class T>
struct Scores {
  int64_t lines, group, rows, columns, first, window, heads;
  float scale;
  T *scores, *weights;  // weights: with them, scores are the gradient of those, and become that of the products
  const uint8_t* mask;
};

template <class T>
INLINE void score_forward(const Scores<T>& s, float* room) {
  for (int64_t line = 0; line < s.lines; line++)
    for (int64_t r = 0; r < s.group * s.rows; r++) {
      const int64_t token = s.first + r % s.rows, seen = token + 1, whole = seen / 16 * 16;
      T* x = s.scores + (line * s.group * s.rows + r) * s.columns;
      int64_t j;
      for (j = 0; j < whole; j += 16) store(room + j, load(x + j) * s.scale);
      if (j < seen) store(room + j, splat(-INFINITY));
      for (; j < seen; j++) room[j] = one(x + j) * s.scale;
      if (s.mask) {
        const uint8_t* mask = s.mask + (line / s.heads * s.window + token) * s.window;
        for (j = 0; j < seen; j++) room[j] = mask[j] ? room[j] : -INFINITY;
      }
      const float top = largest(room, seen);
      f16 sums = {};
      for (j = 0; j < seen; j += 16) {
        const f16 e = exponential(load(room + j) - top);
        store(room + j, e);
        sums += e;
      }
      const float factor = 1 / total(sums);
      for (j = 0; j < whole; j += 16) store(x + j, load(room + j) * factor);
      if (j < seen) {
        T last[16];
        store(last, load(room + j) * factor);
        memcpy(x + j, last, (seen - j) * sizeof(T));
      }
      memset((void*)(x + seen), 0, (s.columns - seen) * sizeof(T));
    }
}

template <class T>
INLINE void score_backward(const Scores<T>& s) {
  const int64_t n = s.columns, whole = n / 16 * 16;
  for (int64_t r = 0; r < s.lines * s.group * s.rows; r++) {
    T *up = s.scores + r * n, *w = s.weights + r * n, last[2][16] = {};
    f16 sums = {};
    int64_t j;
    for (j = 0; j < whole; j += 16) sums += load(up + j) * load(w + j);
    memcpy(last[0], up + j, (n - j) * sizeof(T)), memcpy(last[1], w + j, (n - j) * sizeof(T));
    sums += load(last[0]) * load(last[1]);
    const float along = total(sums);
    for (j = 0; j < whole; j += 16) store(up + j, (load(up + j) - along) * load(w + j) * s.scale);
    store(last[0], (load(last[0]) - along) * load(last[1]) * s.scale);
    memcpy(up + j, last[0], (n - j) * sizeof(T));
  }
}

FAST static void score_all(const Scores<float>& s, float* room) { s.weights ? score_backward(s) : score_forward(s, room); }
FAST static void score_all(const Scores<uint16_t>& s, float* room) { s.weights ? score_backward(s) : score_forward(s, room); }

// ---- Python

struct Buffer {
  Py_buffer view{};
  bool held = false;
  ~Buffer() {
    if (held) PyBuffer_Release(&view);
  }
  bool take(PyObject* object, int64_t bytes, bool writable, const char* name) {
    if (PyObject_GetBuffer(object, &view, writable ? PyBUF_CONTIG : PyBUF_CONTIG_RO) != 0) return false;
    held = true;
    if (view.len == bytes) return true;
    PyErr_Format(PyExc_ValueError, "%s has %zd bytes, expected %lld", name, view.len, (long long)bytes);
    return false;
  }
  // Floats of four dimensions, whose last lies in one piece and whose others may lie anyhow.
  bool take_four(PyObject* object, bool writable, const char* name) {
    if (PyObject_GetBuffer(object, &view, writable ? PyBUF_STRIDED : PyBUF_STRIDED_RO) != 0) return false;
    held = true;
    if (view.ndim == 4 && view.itemsize == 4 && (view.strides[3] == 4 || view.shape[3] == 1)) return true;
    PyErr_Format(PyExc_ValueError, "%s is not made of floats in four dimensions, the last in one piece", name);
    return false;
  }
  template <class T>
  T* as() {
    return (T*)view.buf;
  }
};

// A block from (scores, are they bfloat16, height, stride, columns, margin, queries, how many there are, members).
struct Scored {
  Block block;
  int half = 0;
  Buffer scores, x, members;

  bool take(PyObject* args, long long rows) {
    PyObject *s, *q, *m;
    long long height, stride, columns, total, dim;
    float margin;
    if (!PyArg_ParseTuple(args, "OpLLLfOLOL", &s, &half, &height, &stride, &columns, &margin, &q, &total, &m, &dim)) return false;
    if (rows < 0) rows = total;
    if (!scores.take(s, height * stride * (half ? 2 : 4), false, "scores") || !x.take(q, total * dim * 4, false, "queries") ||
        !members.take(m, columns * dim * 4, false, "members"))
      return false;
    if (rows > height || columns > stride) {
      PyErr_SetString(PyExc_ValueError, "scores has fewer rows or columns than there are queries or members");
      return false;
    }
    block = {rows, columns, stride, dim, margin, x.as<float>(), members.as<float>()};
    return true;
  }
};

static PyObject* py_offer(PyObject*, PyObject* args) {
  PyObject *scored, *rows, *own, *index, *score;
  long long count, total, k, first;
  if (!PyArg_ParseTuple(args, "OOOLLLLOO", &scored, &rows, &own, &count, &total, &k, &first, &index, &score)) return nullptr;
  Scored given;
  Buffer r, o, i, v;
  if (!given.take(scored, count) || !r.take(rows, count * 8, false, "rows") || !o.take(own, total * 8, false, "own") ||
      !i.take(index, total * k * 8, true, "index") || !v.take(score, total * k * 4, true, "score"))
    return nullptr;
  std::vector<float> top(k);
  const Best best = {k, first, r.as<int64_t>(), o.as<int64_t>(), i.as<int64_t>(), v.as<float>(), top.data()};
  for (int64_t n = 0; n < count; n++)
    if (best.rows[n] < 0 || best.rows[n] >= total) {
      PyErr_SetString(PyExc_IndexError, "rows names a query that is not there");
      return nullptr;
    }
  Py_BEGIN_ALLOW_THREADS;
  if (given.half)
    offer_bfloat(given.block, best, given.scores.as<uint16_t>());
  else
    offer_float(given.block, best, given.scores.as<float>());
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

static PyObject* py_within(PyObject*, PyObject* args) {
  PyObject *scored, *counts;
  float reach;
  if (!PyArg_ParseTuple(args, "OfO", &scored, &reach, &counts)) return nullptr;
  Scored given;
  Buffer c;
  if (!given.take(scored, -1) || !c.take(counts, given.block.queries * 8, true, "counts")) return nullptr;
  std::vector<int32_t> found;
  Py_BEGIN_ALLOW_THREADS;
  if (given.half)
    within_bfloat(given.block, reach, given.scores.as<uint16_t>(), c.as<int64_t>(), found);
  else
    within_float(given.block, reach, given.scores.as<float>(), c.as<int64_t>(), found);
  Py_END_ALLOW_THREADS;
  return PyByteArray_FromStringAndSize((const char*)found.data(), (Py_ssize_t)(found.size() * 4));
}

static PyObject* py_widen(PyObject*, PyObject* args) {
  PyObject *source, *wide, *narrow;
  long long rows, padded, dim;
  if (!PyArg_ParseTuple(args, "LLLOOO", &rows, &padded, &dim, &source, &wide, &narrow)) return nullptr;
  Buffer s, w, n;
  if (!s.take(source, rows * dim * 2, false, "source") || !w.take(wide, rows * dim * 4, true, "wide") ||
      (narrow != Py_None && !n.take(narrow, padded * dim * 2, true, "narrow")))
    return nullptr;
  const Widen all = {rows, padded, dim, s.as<uint16_t>(), w.as<float>(), narrow == Py_None ? nullptr : n.as<uint16_t>()};
  float longest;
  Py_BEGIN_ALLOW_THREADS;
  longest = widen_all(all);
  Py_END_ALLOW_THREADS;
  return PyFloat_FromDouble(std::sqrt(longest));
}

template <class T>
static void run_attention(Attention<T> a, Buffer& keys, Buffer& values, void (*run)(const Attention<T>&)) {
  std::vector<float> work(4 * (a.window + a.dim) + 16);
  a.keys = keys.as<T>(), a.values = values.as<T>(), a.work = work.data();
  Py_BEGIN_ALLOW_THREADS;
  run(a);
  Py_END_ALLOW_THREADS;
}

static PyObject* py_attend(PyObject*, PyObject* args) {
  PyObject *qkv, *q_norm, *k_norm, *cosine, *sine, *position, *keys, *values, *out;
  long long rows, heads, kv_heads, dim, window;
  int half;
  float eps;
  if (!PyArg_ParseTuple(args, "LLLLLpfOOOOOOOOO", &rows, &heads, &kv_heads, &dim, &window, &half, &eps, &qkv, &q_norm, &k_norm,
                        &cosine, &sine, &position, &keys, &values, &out))
    return nullptr;
  if ((dim != 16 && dim != 32 && dim != 64 && dim != 128) || window % 16 || kv_heads < 1 || heads % kv_heads) {
    PyErr_SetString(PyExc_ValueError, "heads of 16, 32, 64 or 128 dimensions, windows in sixteens, whole groups of heads");
    return nullptr;
  }
  Buffer b[9];
  const int64_t cache = rows * kv_heads * window * dim * (half ? 2 : 4);
  const bool normed = q_norm != Py_None;
  if (!b[0].take(qkv, rows * (heads + 2 * kv_heads) * dim * 4, false, "qkv") ||
      (normed && (!b[1].take(q_norm, dim * 4, false, "q_norm") || !b[2].take(k_norm, dim * 4, false, "k_norm"))) ||
      !b[3].take(cosine, rows * dim * 4, false, "cosine") || !b[4].take(sine, rows * dim * 4, false, "sine") ||
      !b[5].take(position, rows * 8, false, "position") || !b[6].take(keys, cache, true, "keys") ||
      !b[7].take(values, cache, true, "values") || !b[8].take(out, rows * heads * dim * 4, true, "out"))
    return nullptr;
  for (int64_t r = 0; r < rows; r++)
    if (b[5].as<int64_t>()[r] < 0 || b[5].as<int64_t>()[r] >= window) {
      PyErr_SetString(PyExc_IndexError, "a position lies outside the window");
      return nullptr;
    }
  const float *qn = normed ? b[1].as<float>() : nullptr, *kn = normed ? b[2].as<float>() : nullptr;
  if (half)
    run_attention<uint16_t>({rows, heads, kv_heads, dim, window, eps, b[0].as<float>(), qn, kn, b[3].as<float>(), b[4].as<float>(),
                             b[5].as<int64_t>(), nullptr, nullptr, b[8].as<float>(), nullptr}, b[6], b[7], attend_bfloat);
  else
    run_attention<float>({rows, heads, kv_heads, dim, window, eps, b[0].as<float>(), qn, kn, b[3].as<float>(), b[4].as<float>(),
                          b[5].as<int64_t>(), nullptr, nullptr, b[8].as<float>(), nullptr}, b[6], b[7], attend_float);
  Py_RETURN_NONE;
}

static PyObject* py_draw(PyObject*, PyObject* args) {
  PyObject *logits, *seeds, *steps, *token, *logprob;
  long long rows, vocab;
  float temperature, top_p;
  if (!PyArg_ParseTuple(args, "LLffOOOOO", &rows, &vocab, &temperature, &top_p, &logits, &seeds, &steps, &token, &logprob))
    return nullptr;
  Buffer l, s, t, c, p;
  if (!l.take(logits, rows * vocab * 4, false, "logits") || !s.take(seeds, rows * 8, false, "seeds") ||
      !t.take(steps, rows * 8, false, "steps") || !c.take(token, rows * 8, true, "token") ||
      !p.take(logprob, rows * 4, true, "logprob"))
    return nullptr;
  std::vector<float> work(vocab + 16);
  const Draw d = {rows, vocab, temperature, top_p, l.as<float>(), s.as<uint64_t>(), t.as<uint64_t>(), c.as<int64_t>(),
                  p.as<float>(), work.data()};
  for (int64_t n = 0; n < rows * vocab; n++)
    if (!(d.logits[n] <= 3e38f)) {
      PyErr_SetString(PyExc_FloatingPointError, "a logit is not a number");
      return nullptr;
    }
  Py_BEGIN_ALLOW_THREADS;
  draw_all(d);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

static PyObject* py_softmax_gradient(PyObject*, PyObject* args) {
  PyObject *logits, *targets;
  long long rows, vocab;
  Softmax s{};
  if (!PyArg_ParseTuple(args, "LLffOO", &rows, &vocab, &s.scale, &s.z_loss, &logits, &targets)) return nullptr;
  Buffer l, t;
  if (!l.take(logits, rows * vocab * 4, true, "logits") || !t.take(targets, rows * 8, false, "targets")) return nullptr;
  s.rows = rows, s.vocab = vocab, s.logits = l.as<float>(), s.targets = t.as<int64_t>();
  for (int64_t r = 0; r < rows; r++)
    if (s.targets[r] < 0 || s.targets[r] >= vocab) {
      PyErr_SetString(PyExc_IndexError, "a target lies outside the vocabulary");
      return nullptr;
    }
  Py_BEGIN_ALLOW_THREADS;
  softmax_all(s);
  Py_END_ALLOW_THREADS;
  return Py_BuildValue("dd", s.sums[0], s.sums[1]);
}

static PyObject* py_norm(PyObject*, PyObject* args) {
  PyObject *x, *weight, *up, *out, *scale, *into_weight;
  Norm n{};
  long long rows, dim;
  if (!PyArg_ParseTuple(args, "LLfOOOOOO", &rows, &dim, &n.eps, &x, &weight, &up, &out, &scale, &into_weight)) return nullptr;
  Buffer b[6];
  const bool back = up != Py_None;
  if (!b[0].take(x, rows * dim * 4, false, "x") || !b[1].take(weight, dim * 4, false, "weight") ||
      (back && (!b[2].take(up, rows * dim * 4, false, "gradient") || !b[5].take(into_weight, dim * 4, true, "into_weight"))) ||
      !b[3].take(out, rows * dim * 4, true, "out") || !b[4].take(scale, rows * 4, true, "scale"))
    return nullptr;
  n.rows = rows, n.dim = dim, n.x = b[0].as<float>(), n.weight = b[1].as<float>(), n.out = b[3].as<float>();
  n.scale = b[4].as<float>();
  if (back) n.up = b[2].as<float>(), n.into_weight = b[5].as<float>();
  Py_BEGIN_ALLOW_THREADS;
  norm_all(n);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

static PyObject* py_gate(PyObject*, PyObject* args) {
  PyObject *gate, *value, *up, *out, *into_value;
  Gate g{};
  long long count;
  if (!PyArg_ParseTuple(args, "LOOOOO", &count, &gate, &value, &up, &out, &into_value)) return nullptr;
  Buffer b[5];
  const bool back = up != Py_None;
  if (!b[0].take(gate, count * 4, false, "gate") || !b[1].take(value, count * 4, false, "value") ||
      (back && (!b[2].take(up, count * 4, false, "gradient") || !b[4].take(into_value, count * 4, true, "into_value"))) ||
      !b[3].take(out, count * 4, true, "out"))
    return nullptr;
  g.count = count, g.gate = b[0].as<float>(), g.value = b[1].as<float>(), g.out = b[3].as<float>();
  if (back) g.up = b[2].as<float>(), g.into_value = b[4].as<float>();
  Py_BEGIN_ALLOW_THREADS;
  gate_all(g);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

static PyObject* py_rotate(PyObject*, PyObject* args) {
  PyObject *x, *cos, *sin, *out;
  int shared, back;
  if (!PyArg_ParseTuple(args, "OOOppO", &x, &cos, &sin, &shared, &back, &out)) return nullptr;
  Buffer b[4];
  if (!b[0].take_four(x, false, "x") || !b[3].take_four(out, true, "out")) return nullptr;
  Rotate r{};
  r.shared = shared, r.back = back;
  for (int i = 0; i < 4; i++) {
    if (b[0].view.shape[i] != b[3].view.shape[i]) {
      PyErr_SetString(PyExc_ValueError, "x and out differ in shape");
      return nullptr;
    }
    r.size[i] = b[0].view.shape[i];
    if (i < 3) r.from[i] = b[0].view.strides[i] / 4, r.to[i] = b[3].view.strides[i] / 4;
  }
  const int64_t angles = (shared ? 1 : r.size[0]) * r.size[1] * r.size[3] * 4;
  if (!b[1].take(cos, angles, false, "cos") || !b[2].take(sin, angles, false, "sin")) return nullptr;
  r.x = b[0].as<float>(), r.cos = b[1].as<float>(), r.sin = b[2].as<float>(), r.out = b[3].as<float>();
  Py_BEGIN_ALLOW_THREADS;
  rotate_all(r);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

template <class T>
static void run_scores(Scores<T> s, Buffer& scores, Buffer& weights, Buffer& mask) {
  s.scores = scores.as<T>(), s.weights = weights.as<T>(), s.mask = mask.as<uint8_t>();
  std::vector<float> room(s.window + 16);
  Py_BEGIN_ALLOW_THREADS;
  score_all(s, room.data());
  Py_END_ALLOW_THREADS;
}

static PyObject* py_attention_weights(PyObject*, PyObject* args) {
  PyObject *scores, *weights, *mask;
  long long lines, group, rows, first, window, heads;
  int half;
  float scale;
  if (!PyArg_ParseTuple(args, "LLLLLLpfOOO", &lines, &group, &rows, &first, &window, &heads, &half, &scale, &scores, &weights, &mask))
    return nullptr;
  const int64_t columns = first + rows, bytes = lines * group * rows * columns * (half ? 2 : 4);
  if (rows < 1 || first < 0 || columns > window || heads < 1 || lines % heads) {
    PyErr_SetString(PyExc_ValueError, "rows lie outside the window, or lines are not whole documents");
    return nullptr;
  }
  Buffer s, w, m;
  if (!s.take(scores, bytes, true, "scores") || (weights != Py_None && !w.take(weights, bytes, false, "weights")) ||
      (mask != Py_None && !m.take(mask, lines / heads * window * window, false, "mask")))
    return nullptr;
  if (half)
    run_scores(Scores<uint16_t>{lines, group, rows, columns, first, window, heads, scale, nullptr, nullptr, nullptr}, s, w, m);
  else
    run_scores(Scores<float>{lines, group, rows, columns, first, window, heads, scale, nullptr, nullptr, nullptr}, s, w, m);
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"offer", py_offer, METH_VARARGS, nullptr},
    {"within", py_within, METH_VARARGS, nullptr},
    {"widen", py_widen, METH_VARARGS, nullptr},
    {"softmax_gradient", py_softmax_gradient, METH_VARARGS, nullptr},
    {"norm", py_norm, METH_VARARGS, nullptr},
    {"gate", py_gate, METH_VARARGS, nullptr},
    {"rotate", py_rotate, METH_VARARGS, nullptr},
    {"attend", py_attend, METH_VARARGS, nullptr},
    {"draw", py_draw, METH_VARARGS, nullptr},
    {"attention_weights", py_attention_weights, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__kernels() { return PyModule_Create(&module); }
