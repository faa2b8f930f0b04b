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

INLINE float one(const float* p) { return *p; }

INLINE float one(const uint16_t* p) {
  uint32_t bits = (uint32_t)*p << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
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

static PyMethodDef methods[] = {
    {"offer", py_offer, METH_VARARGS, nullptr},
    {"within", py_within, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__kernels() { return PyModule_Create(&module); }
