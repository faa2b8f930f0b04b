// The loops of training, forwards and backwards: norms, gates, rotary positions, attention's
// softmax, and the loss. `training.py` says what goes in and out.

// ---- softmax turned into the gradient of its cross-entropy

// One row, in place; adds the cross-entropy and the squared logsumexp to `sums`.
INLINE void loss_row(float* x, int64_t vocab, int64_t target, float scale, float z_loss,
                     double* sums) {
  const int64_t aligned = vocab / 16 * 16;
  const float top = maximum(x, vocab);
  const float target_logit = x[target];

  double mass = 0;
  f16 lanes = splat(0);
  int64_t j;
  for (j = 0; j < aligned; j += 16) {
    const f16 e = exponential(load(x + j) - splat(top));
    store(x + j, e);
    lanes += e;
    // floats add up at most 256 vectors, so that large vocabularies stay exact
    if (j % 4096 == 4080) mass += sum(lanes), lanes = splat(0);
  }
  mass += sum(lanes);
  for (; j < vocab; j++) {
    x[j] = std::exp(x[j] - top);
    mass += x[j];
  }

  const double lse = std::log(mass) + top;
  const float factor = (float)(scale * (1 + 2 * z_loss * lse) / mass);
  for (j = 0; j < aligned; j += 16) store(x + j, load(x + j) * factor);
  for (; j < vocab; j++) x[j] *= factor;
  x[target] -= scale;
  sums[0] += lse - target_logit;
  sums[1] += lse * lse;
}

// ---- RMS norm; `scale` is 1 / root mean square of every row

INLINE void norm_row(const float* x, const float* weight, int64_t dim, float eps, float* out,
                     float* scale) {
  const float s = 1 / std::sqrt(dot(x, x, dim) / dim + eps);
  *scale = s;
  for (int64_t d = 0; d < dim; d++) out[d] = x[d] * s * weight[d];
}

// Adds to the weight's gradient.
INLINE void norm_row_backward(const float* x, const float* weight, int64_t dim, float scale,
                              const float* grad, float* grad_x, float* grad_weight) {
  f16 lanes = splat(0);
  float projection = 0;  // of the gradient on x
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    const f16 product = load(grad + d) * load(x + d);
    lanes += product * load(weight + d);
    store(grad_weight + d, load(grad_weight + d) + product * scale);
  }
  for (; d < dim; d++) {
    projection += grad[d] * x[d] * weight[d];
    grad_weight[d] += grad[d] * x[d] * scale;
  }
  projection = (projection + sum(lanes)) * scale * scale / dim;
  for (d = 0; d < dim; d++) grad_x[d] = scale * (grad[d] * weight[d] - x[d] * projection);
}

// ---- silu(gate) x value

INLINE f16 sigmoid(f16 x) {
  const auto positive = greater(x, splat(0));
  const f16 e = exponential(choose(positive, -x, x));
  return choose(positive, splat(1), e) / (1.0f + e);
}

// `grad` and `grad_value` are null on the way forwards, where `out` is the result; on the way
// back `out` is the gate's gradient.
struct Gate {
  const float *gate, *value, *grad;
  float *out, *grad_value;
};

INLINE void gate_vector(const Gate& g, int64_t i) {
  const f16 x = load(g.gate + i), s = sigmoid(x);
  if (!g.grad) {
    store(g.out + i, x * s * load(g.value + i));
    return;
  }
  const f16 grad = load(g.grad + i);
  store(g.grad_value + i, grad * x * s);
  store(g.out + i, grad * load(g.value + i) * s * (1.0f + x * (1.0f - s)));
}

INLINE void gate_row(const Gate& g, int64_t dim) {
  int64_t i = 0;
  for (; i + 16 <= dim; i += 16) gate_vector(g, i);
  if (i == dim) return;

  // what is left over goes by way of whole vectors
  float last[5][16] = {};
  const int64_t left = (dim - i) * 4;
  memcpy(last[0], g.gate + i, left);
  memcpy(last[1], g.value + i, left);
  if (g.grad) memcpy(last[2], g.grad + i, left);
  gate_vector({last[0], last[1], g.grad ? last[2] : nullptr, last[3], last[4]}, 0);
  memcpy(g.out + i, last[3], left);
  if (g.grad) memcpy(g.grad_value + i, last[4], left);
}

// ---- the softmax of causal attention, and its gradient, in place

// Scores are (batch x kv_head, group, row, column): the query heads that share a key head make a
// group. Row i is token `first + i`, and sees the columns up to itself that `mask` (batch, token,
// token) allows. With `weights` the scores are the gradient of those, and become their own.
template <class T>
struct AttentionScores {
  int64_t num_kv, group, rows, first, seq_len, kv_heads;
  float scale;
  T *scores, *weights;
  const uint8_t* mask;
};

template <class T>
INLINE void softmax_rows(const AttentionScores<T>& s, float* buffer) {
  const int64_t columns = s.first + s.rows;
  for (int64_t kv = 0; kv < s.num_kv; kv++)
    for (int64_t r = 0; r < s.group * s.rows; r++) {
      const int64_t token = s.first + r % s.rows;
      const int64_t visible = token + 1, aligned = visible / 16 * 16;
      T* x = s.scores + (kv * s.group * s.rows + r) * columns;
      int64_t j;

      for (j = 0; j < aligned; j += 16) store(buffer + j, load(x + j) * s.scale);
      if (j < visible) store(buffer + j, splat(-INFINITY));
      for (; j < visible; j++) buffer[j] = load_one(x + j) * s.scale;
      if (s.mask) {
        const uint8_t* mask = s.mask + (kv / s.kv_heads * s.seq_len + token) * s.seq_len;
        for (j = 0; j < visible; j++) buffer[j] = mask[j] ? buffer[j] : -INFINITY;
      }

      const float top = maximum(buffer, visible);
      f16 lanes = splat(0);
      for (j = 0; j < visible; j += 16) {
        const f16 e = exponential(load(buffer + j) - top);
        store(buffer + j, e);
        lanes += e;
      }

      const float factor = 1 / sum(lanes);
      for (j = 0; j < aligned; j += 16) store(x + j, load(buffer + j) * factor);
      if (j < visible) {
        T last[16];
        store(last, load(buffer + j) * factor);
        memcpy(x + j, last, (visible - j) * sizeof(T));
      }
      memset((void*)(x + visible), 0, (columns - visible) * sizeof(T));
    }
}

template <class T>
INLINE void softmax_rows_backward(const AttentionScores<T>& s) {
  const int64_t columns = s.first + s.rows, aligned = columns / 16 * 16;
  const int64_t left = (columns - aligned) * sizeof(T);
  for (int64_t r = 0; r < s.num_kv * s.group * s.rows; r++) {
    T *grad = s.scores + r * columns, *weight = s.weights + r * columns;
    T last_grad[16] = {}, last_weight[16] = {};
    f16 lanes = splat(0);
    int64_t j;
    for (j = 0; j < aligned; j += 16) lanes += load(grad + j) * load(weight + j);
    memcpy(last_grad, grad + j, left);
    memcpy(last_weight, weight + j, left);
    lanes += load(last_grad) * load(last_weight);

    const float projection = sum(lanes);
    for (j = 0; j < aligned; j += 16)
      store(grad + j, (load(grad + j) - projection) * load(weight + j) * s.scale);
    store(last_grad, (load(last_grad) - projection) * load(last_weight) * s.scale);
    memcpy(grad + j, last_grad, left);
  }
}

template <class T>
INLINE void softmax(const AttentionScores<T>& s) {
  if (s.weights) return softmax_rows_backward(s);
  std::vector<float> buffer(s.seq_len + 16);
  softmax_rows(s, buffer.data());
}

extern "C" {

// False where a target lies outside the vocabulary.
bool EXPORT(softmax_gradient)(int64_t rows, int64_t vocab, double scale, double z_loss,
                              float* logits, const int64_t* targets, double* sums) {
  for (int64_t r = 0; r < rows; r++)
    if (targets[r] < 0 || targets[r] >= vocab) return false;
  for (int64_t r = 0; r < rows; r++)
    loss_row(logits + r * vocab, vocab, targets[r], (float)scale, (float)z_loss, sums);
  return true;
}

void EXPORT(rms_norm)(int64_t rows, int64_t dim, double eps, const float* x, const float* weight,
                      float* out, float* scale) {
  for (int64_t r = 0; r < rows; r++)
    norm_row(x + r * dim, weight, dim, (float)eps, out + r * dim, scale + r);
}

void EXPORT(rms_norm_backward)(int64_t rows, int64_t dim, const float* x, const float* weight,
                               const float* scale, const float* grad, float* grad_x,
                               float* grad_weight) {
  for (int64_t r = 0; r < rows; r++)
    norm_row_backward(x + r * dim, weight, dim, scale[r], grad + r * dim, grad_x + r * dim,
                      grad_weight);
}

// Rows of gates and values begin `stride` floats apart, those of all others `dim`.
void EXPORT(silu_gate)(int64_t rows, int64_t dim, int64_t stride, const float* gate,
                       const float* value, const float* grad, float* out, float* grad_value) {
  for (int64_t r = 0; r < rows; r++) {
    const float* row_grad = grad ? grad + r * dim : nullptr;
    float* row_grad_value = grad ? grad_value + r * dim : nullptr;
    gate_row({gate + r * stride, value + r * stride, row_grad, out + r * dim, row_grad_value}, dim);
  }
}

// x and out are (size[0], size[1], size[2], size[3]); strides are those of the first three, in
// floats. Angles are (1 or size[0], size[1], size[3]).
void EXPORT(rotate)(const int64_t* size, const int64_t* x_stride, const int64_t* out_stride,
                    int64_t shared_angles, int64_t inverse, const float* x, const float* cosine,
                    const float* sine, float* out) {
  const int64_t dim = size[3], half = dim / 2;
  for (int64_t b = 0; b < size[0]; b++)
    for (int64_t t = 0; t < size[1]; t++) {
      // the halves of a row of angles are alike: one is read
      const int64_t angle = ((shared_angles ? 0 : b) * size[1] + t) * dim;
      const float *cos = cosine + angle, *sin = sine + angle;
      for (int64_t h = 0; h < size[2]; h++) {
        const float* in = x + b * x_stride[0] + t * x_stride[1] + h * x_stride[2];
        float* to = out + b * out_stride[0] + t * out_stride[1] + h * out_stride[2];
        int64_t i = 0;
        for (; i + 16 <= half; i += 16) {
          const f16 low = load(in + i), high = load(in + half + i), c = load(cos + i);
          const f16 s = inverse ? -load(sin + i) : load(sin + i);
          store(to + i, low * c - high * s);
          store(to + half + i, high * c + low * s);
        }
        for (; i < half; i++) {
          const float s = inverse ? -sin[i] : sin[i];
          to[i] = in[i] * cos[i] - in[half + i] * s;
          to[half + i] = in[half + i] * cos[i] + in[i] * s;
        }
      }
    }
}

void EXPORT(attention_weights)(int64_t num_kv, int64_t group, int64_t rows, int64_t first,
                               int64_t seq_len, int64_t kv_heads, int64_t is_bfloat16, double scale,
                               void* scores, void* weights, const uint8_t* mask) {
  const float s = (float)scale;
  if (is_bfloat16)
    softmax<uint16_t>({num_kv, group, rows, first, seq_len, kv_heads, s, (uint16_t*)scores,
                       (uint16_t*)weights, mask});
  else
    softmax<float>(
        {num_kv, group, rows, first, seq_len, kv_heads, s, (float*)scores, (float*)weights, mask});
}

}  // extern "C"
