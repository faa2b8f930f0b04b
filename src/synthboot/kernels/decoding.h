// The loops of sampling: one token of attention over a cache, and a token drawn from logits.
// `decoding.py` says what goes in and out.

// ---- one token of attention for every row of a batch

// T is float, or uint16_t for bfloat16. Keys lie in blocks of sixteen positions, so that sixteen
// scores come from contiguous loads.
template <class T>
struct Attention {
  int64_t rows, heads, kv_heads, dim, capacity;
  float eps;
  const float* qkv;              // (row, heads + 2 kv_heads, dim)
  const float *q_norm, *k_norm;  // (dim), or null
  const float *cosine, *sine;    // (row, dim)
  const int64_t* position;       // (row)
  T* keys;                       // (row, kv_head, capacity / 16, dim, 16)
  T* values;                     // (row, kv_head, capacity, dim)
  float* out;                    // (row, head, dim)
  float *weights, *query;        // room for (4, capacity) and (4, dim)
};

// One head, normalized where there is a weight, rotated, and scaled.
INLINE void normalize_and_rotate(const float* x, const float* weight, float eps,
                                 const float* cosine, const float* sine, int64_t dim, float scale,
                                 float* out) {
  float r = scale;
  if (weight) r = scale / std::sqrt(dot(x, x, dim) / dim + eps);
  const int64_t half = dim / 2;
  for (int64_t d = 0; d < half; d++) {
    const float a = x[d] * r * (weight ? weight[d] : 1);
    const float b = x[d + half] * r * (weight ? weight[d + half] : 1);
    out[d] = a * cosine[d] - b * sine[d];
    out[d + half] = b * cosine[d + half] + a * sine[d + half];
  }
}

// The scores of G query heads with B blocks of sixteen positions; V vectors make up a head.
template <int G, int V, int B, class T>
INLINE void score_blocks(const T* keys, int64_t start, int64_t capacity, const float* query,
                         float* weights) {
  const int64_t dim = 16 * V;
  const T* blocks = keys + start * dim;
  f16 score[G][B];
  for (int g = 0; g < G; g++)
    for (int b = 0; b < B; b++) score[g][b] = splat(0);
  for (int64_t d = 0; d < dim; d++)
    for (int b = 0; b < B; b++) {
      const f16 key = load(blocks + (b * dim + d) * 16);
      for (int g = 0; g < G; g++) score[g][b] += query[g * dim + d] * key;
    }
  for (int g = 0; g < G; g++)
    for (int b = 0; b < B; b++) store(weights + g * capacity + start + 16 * b, score[g][b]);
}

// C vectors of the values, mixed by the weights of G heads.
template <int G, int C, class T>
INLINE void mix_values(const T* values, int64_t dim, int64_t count, int64_t capacity,
                       const float* weights, const float* mass, float* out) {
  f16 mixed[G][C];
  for (int g = 0; g < G; g++)
    for (int c = 0; c < C; c++) mixed[g][c] = splat(0);
  for (int64_t p = 0; p < count; p++)
    for (int c = 0; c < C; c++) {
      const f16 value = load(values + p * dim + 16 * c);
      for (int g = 0; g < G; g++) mixed[g][c] += weights[g * capacity + p] * value;
    }
  for (int g = 0; g < G; g++)
    for (int c = 0; c < C; c++) store(out + g * dim + 16 * c, mixed[g][c] * (1 / mass[g]));
}

// G query heads over the first `count` positions of the keys that they share; V vectors of
// sixteen make up a head.
template <int G, int V, class T>
INLINE void attend_group(const T* keys, const T* values, int64_t count, int64_t capacity,
                         const float* query, float* weights, float* out) {
  const int64_t dim = 16 * V;

  // several blocks of positions at a time, so that there are always four sums or more to add to
  const int B = 4 / G;
  int64_t start = 0;
  for (; start + 16 * B <= count; start += 16 * B)
    score_blocks<G, V, B>(keys, start, capacity, query, weights);
  for (; start < count; start += 16) score_blocks<G, V, 1>(keys, start, capacity, query, weights);

  float mass[G];
  for (int g = 0; g < G; g++) {
    float* weight = weights + g * capacity;
    for (int64_t p = count; p < start; p++) weight[p] = -INFINITY;
    const float top = maximum(weight, start);
    f16 lanes = splat(0);
    for (int64_t p = 0; p < start; p += 16) {
      const f16 e = exponential(load(weight + p) - splat(top));
      store(weight + p, e);
      lanes += e;
    }
    mass[g] = sum(lanes);
  }

  // as many of a head's vectors at a time as there are registers for
  const int most = LANES == 16 ? 16 / G : 4 / G;
  const int C = most >= 4 && V % 4 == 0 ? 4 : most >= 2 && V % 2 == 0 ? 2 : 1;
  for (int64_t d = 0; d < dim; d += 16 * C)
    mix_values<G, C>(values + d, dim, count, capacity, weights, mass, out + d);
}

template <int V, class T>
INLINE void attend_rows(const Attention<T>& a) {
  const int64_t dim = 16 * V;
  const int64_t group = a.heads / a.kv_heads;
  const int64_t row_size = (a.heads + 2 * a.kv_heads) * dim;
  const float scale = 1 / std::sqrt((float)dim);
  for (int64_t r = 0; r < a.rows; r++) {
    const int64_t position = a.position[r];
    const float *cosine = a.cosine + r * dim, *sine = a.sine + r * dim;
    for (int64_t h = 0; h < a.kv_heads; h++) {
      // the token's key and value go into the cache
      T* keys = a.keys + (r * a.kv_heads + h) * a.capacity * dim;
      T* values = a.values + (r * a.kv_heads + h) * a.capacity * dim;
      const float* k = a.qkv + r * row_size + (a.heads + h) * dim;
      const float* v = k + a.kv_heads * dim;
      normalize_and_rotate(k, a.k_norm, a.eps, cosine, sine, dim, 1, a.query);
      T* column = keys + (position / 16) * 16 * dim + position % 16;
      for (int64_t d = 0; d < dim; d++) store_one(column + d * 16, a.query[d]);
      for (int64_t d = 0; d < dim; d++) store_one(values + position * dim + d, v[d]);

      // the query heads that share it, four at a time while there are as many
      for (int64_t g = 0; g < group;) {
        const int64_t head = h * group + g, left = group - g;
        const int size = left >= 4 ? 4 : (int)left;
        for (int n = 0; n < size; n++)
          normalize_and_rotate(a.qkv + r * row_size + (head + n) * dim, a.q_norm, a.eps, cosine,
                               sine, dim, scale, a.query + n * dim);
        float* out = a.out + (r * a.heads + head) * dim;
        const int64_t count = position + 1;
        if (size == 4)
          attend_group<4, V>(keys, values, count, a.capacity, a.query, a.weights, out);
        else if (size == 3)
          attend_group<3, V>(keys, values, count, a.capacity, a.query, a.weights, out);
        else if (size == 2)
          attend_group<2, V>(keys, values, count, a.capacity, a.query, a.weights, out);
        else
          attend_group<1, V>(keys, values, count, a.capacity, a.query, a.weights, out);
        g += size;
      }
    }
  }
}

template <class T>
INLINE void attend_any(const Attention<T>& a) {
  if (a.dim == 16) attend_rows<1>(a);
  if (a.dim == 32) attend_rows<2>(a);
  if (a.dim == 64) attend_rows<4>(a);
  if (a.dim == 128) attend_rows<8>(a);
}

// ---- a token for every row

// 24 bits in [0, 1) by splitmix64 of (seed, step, attempt), as `nucleus.uniforms` has them.
INLINE float uniform(uint64_t seed, uint64_t step, uint64_t attempt) {
  uint64_t x = seed + (step * 64 + attempt + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  return (float)(x >> 40) * 0x1p-24f;
}

// The token at which the running sum of the weights exceeds `target`.
INLINE int64_t inverse_cdf(const float* weights, int64_t vocab, double target) {
  double cumulative = 0;
  int64_t token = 0;
  for (; token + 16 < vocab; token += 16) {
    const double next = cumulative + sum(load(weights + token));
    if (next > target) break;
    cumulative = next;
  }
  for (; token + 1 < vocab; token++) {
    cumulative += weights[token];
    if (cumulative > target) break;
  }
  return token;
}

// The sum of the weights above `weight`; there are vectors of sixteen up to `vocab`.
INLINE double sum_above(const float* weights, int64_t vocab, float weight) {
  double total = 0;
  for (int64_t j = 0; j < vocab; j += 16) {
    const f16 w = load(weights + j);
    total += sum(choose(greater(w, splat(weight)), w, splat(0)));
  }
  return total;
}

// `weights` is room for `vocab` floats, rounded up to sixteen.
INLINE void draw_row(const float* logits, int64_t vocab, float temperature, float top_p,
                     uint64_t seed, uint64_t step, float* weights, int64_t* token, float* logprob) {
  const int64_t aligned = vocab / 16 * 16;
  const float top = maximum(logits, vocab);
  const float inverse = temperature > 0 ? 1 / temperature : 1;
  double mass = 0, mass_at_one = 0;  // at this temperature, and at temperature 1
  for (int64_t j = 0; j < vocab; j += 16) {
    f16 x;
    if (j < aligned) {
      x = load(logits + j);
    } else {  // what the last vector lacks has no weight
      float last[16];
      for (int n = 0; n < 16; n++) last[n] = j + n < vocab ? logits[j + n] : -INFINITY;
      x = load(last);
    }
    const f16 e = exponential((x - splat(top)) * inverse);
    store(weights + j, e);
    mass += sum(e);
    if (inverse != 1) mass_at_one += sum(exponential(x - splat(top)));
  }
  if (inverse == 1) mass_at_one = mass;

  int64_t chosen = -1;
  if (temperature > 0)
    for (int attempt = 0; attempt < 64 && chosen < 0; attempt++) {
      const double target = uniform(seed, step, attempt) * mass;
      const int64_t candidate = inverse_cdf(weights, vocab, target);
      const float weight = weights[candidate];
      const double likelier = sum_above(weights, vocab, weight);
      if (weight > 0 && likelier < top_p * mass) chosen = candidate;
    }
  // the likeliest: greedy, or a top_p that hardly lets anything else through
  for (int64_t j = 0; chosen < 0; j++)
    if (logits[j] == top) chosen = j;
  *token = chosen;
  *logprob = (float)(logits[chosen] - top - std::log(mass_at_one));
}

template <class T>
INLINE bool run_attention(Attention<T> a) {
  std::vector<float> room(4 * (a.capacity + a.dim) + 16);
  a.weights = room.data();
  a.query = a.weights + 4 * a.capacity;
  attend_any(a);
  return true;
}

extern "C" {

// False where a position lies outside the cache.
bool EXPORT(attend)(int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t capacity,
                    int64_t is_bfloat16, double eps, const float* qkv, const float* q_norm,
                    const float* k_norm, const float* cosine, const float* sine,
                    const int64_t* position, void* keys, void* values, float* out) {
  for (int64_t r = 0; r < rows; r++)
    if (position[r] < 0 || position[r] >= capacity) return false;

  if (is_bfloat16)
    return run_attention<uint16_t>({rows, heads, kv_heads, dim, capacity, (float)eps, qkv, q_norm,
                                    k_norm, cosine, sine, position, (uint16_t*)keys,
                                    (uint16_t*)values, out, nullptr, nullptr});
  return run_attention<float>({rows, heads, kv_heads, dim, capacity, (float)eps, qkv, q_norm,
                               k_norm, cosine, sine, position, (float*)keys, (float*)values, out,
                               nullptr, nullptr});
}

// False where a logit is not a number, or infinite.
bool EXPORT(draw)(int64_t rows, int64_t vocab, double temperature, double top_p,
                  const float* logits, const uint64_t* seeds, const uint64_t* steps, int64_t* token,
                  float* logprob) {
  bool finite = true;  // without a branch, so that sixteen are looked at together
  for (int64_t n = 0; n < rows * vocab; n++) finite &= logits[n] <= 3e38f;
  if (!finite) return false;

  std::vector<float> weights(vocab + 16);
  for (int64_t r = 0; r < rows; r++)
    draw_row(logits + r * vocab, vocab, (float)temperature, (float)top_p, seeds[r], steps[r],
             weights.data(), token + r, logprob + r);
  return true;
}

}  // extern "C"
