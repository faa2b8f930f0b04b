// The loops of the join: the k best of every query, the members within a radius of its nearest,
// rows in half precision made ready for matmuls. `topk.py` says what goes in and out.

// Queries, members, and scores of theirs that are off by at most `margin`. A row of scores has
// room for `stride` columns, of which `columns` are members.
template <class T>
struct Scores {
  const T* scores;
  int64_t stride, columns;
  float margin;
  const float *queries, *members;
  int64_t dim;
};

// Calls `visit(j)` for the scores of a row that are not below `threshold`, in order; `visit` may
// raise the threshold.
template <class T, class Visit>
INLINE void scan(const T* row, int64_t columns, const float& threshold, Visit visit) {
  int64_t j = 0;
  for (; j + 64 <= columns; j += 64) {
    const f16 a = load(row + j), b = load(row + j + 16);
    const f16 c = load(row + j + 32), d = load(row + j + 48);
    const f16 limit = splat(threshold);
    if (!any(at_least(larger(larger(a, b), larger(c, d)), limit))) continue;

    uint64_t found = bits(at_least(a, limit)) | (uint64_t)bits(at_least(b, limit)) << 16 |
                     (uint64_t)bits(at_least(c, limit)) << 32 |
                     (uint64_t)bits(at_least(d, limit)) << 48;
    for (; found; found &= found - 1) {
      const int64_t n = j + __builtin_ctzll(found);
      if (load_one(row + n) >= threshold) visit(n);
    }
  }
  for (; j < columns; j++)
    if (load_one(row + j) >= threshold) visit(j);
}

// ---- the k best of a query, best first, equal ones by number

struct TopK {
  int64_t k, first;           // `first` is the number of column 0
  const int64_t *rows, *own;  // the query of each row of scores; the number of each query itself
  int64_t num_rows;
  int64_t* index;
  float *score, *largest;  // `largest` is room for k + 1 floats
};

INLINE void insert(int64_t* index, float* score, int64_t k, int64_t number, float value) {
  const int64_t last = k - 1;
  if (value < score[last]) return;
  if (value == score[last] && number > index[last] && index[last] >= 0) return;
  int64_t rank = last;
  while (rank > 0 &&
         (score[rank - 1] < value || (score[rank - 1] == value && index[rank - 1] > number))) {
    score[rank] = score[rank - 1];
    index[rank] = index[rank - 1];
    rank--;
  }
  score[rank] = value;
  index[rank] = number;
}

// The k-th largest of `count` numbers, -inf where there are fewer; `largest` is room for k.
INLINE float kth_largest(const float* numbers, int64_t count, int64_t k, float* largest) {
  for (int64_t n = 0; n < k; n++) largest[n] = -INFINITY;
  for (int64_t n = 0; n < count; n++) {
    int64_t rank = k - 1;
    if (numbers[n] <= largest[rank]) continue;
    for (; rank > 0 && largest[rank - 1] < numbers[n]; rank--) largest[rank] = largest[rank - 1];
    largest[rank] = numbers[n];
  }
  return largest[k - 1];
}

// A number that the k largest of a row are not below, one column left out. Of 64 groups of columns
// the largest of each is found at no cost; the k largest of these belong to k columns.
template <class T>
INLINE float below_k_largest(const T* row, int64_t columns, int64_t own, int64_t k,
                             float* largest) {
  f16 top[4];
  for (int n = 0; n < 4; n++) top[n] = splat(-INFINITY);
  int64_t j = 0;
  for (; j + 64 <= columns; j += 64)
    for (int n = 0; n < 4; n++) top[n] = larger(top[n], load(row + j + 16 * n));
  float groups[64];
  for (int n = 0; n < 4; n++) store(groups + 16 * n, top[n]);
  for (int n = 0; j < columns; n++, j++) {
    const float value = load_one(row + j);
    if (value > groups[n]) groups[n] = value;
  }

  // one group's largest may be the column that is left out
  const bool is_inside = own >= 0 && own < columns;
  return kth_largest(groups, 64, k + is_inside, largest);
}

template <class T>
INLINE void update_rows(const Scores<T>& s, const TopK& best) {
  const int64_t k = best.k, dim = s.dim;
  for (int64_t i = 0; i < best.num_rows; i++) {
    if (i + 1 < best.num_rows) {
      const int64_t next = best.rows[i + 1];
      for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(s.queries + next * dim + d);
      for (int64_t n = 0; n < k; n += 8) {
        __builtin_prefetch(best.index + next * k + n);
        __builtin_prefetch(best.score + next * k + n);
      }
    }

    const int64_t query = best.rows[i], own = best.own[query] - best.first;
    int64_t* index = best.index + query * k;
    float* score = best.score + query * k;
    const T* row = s.scores + i * s.stride;
    float threshold = score[k - 1] - s.margin;
    if (score[k - 1] == -INFINITY)  // nothing to beat yet: what these scores put among the k best
      threshold = below_k_largest(row, s.columns, own, k, best.largest) - 2 * s.margin;
    scan(row, s.columns, threshold, [&](int64_t j) __attribute__((always_inline)) {
      if (j == own) return;
      // the score may be off by the margin, so it is taken again in float32
      const float value = dot(s.queries + query * dim, s.members + j * dim, dim);
      insert(index, score, k, best.first + j, value);
      if (score[k - 1] - s.margin > threshold) threshold = score[k - 1] - s.margin;
    });
  }
}

// ---- the members within a radius

// Returns how many `selected` holds.
template <class T>
INLINE int64_t select_rows(const Scores<T>& s, int64_t queries, float radius, int64_t* counts,
                           int32_t* selected) {
  int64_t total = 0;
  for (int64_t i = 0; i < queries; i++) {
    const T* row = s.scores + i * s.stride;
    const float* query = s.queries + i * s.dim;
    const int64_t before = total;

    float threshold = -INFINITY;
    scan(row, s.columns, threshold, [&](int64_t j) __attribute__((always_inline)) {
      if (load_one(row + j) > threshold) threshold = load_one(row + j);
    });
    threshold -= 2 * s.margin;

    float best = -INFINITY;
    int64_t nearest = 0;
    scan(row, s.columns, threshold, [&](int64_t j) __attribute__((always_inline)) {
      const float value = dot(query, s.members + j * s.dim, s.dim);
      if (value > best) best = value, nearest = j;
    });
    selected[total++] = (int32_t)nearest;

    if (radius >= 0) {
      threshold = best - radius - s.margin;
      scan(row, s.columns, threshold, [&](int64_t j) __attribute__((always_inline)) {
        if (j == nearest) return;
        const float value = dot(query, s.members + j * s.dim, s.dim);
        if (value >= best - radius) selected[total++] = (int32_t)j;
      });
    }
    counts[i] = total - before;
  }
  return total;
}

// ---- half precision

// One row, also in bfloat16 unless that is null; returns its squared length.
INLINE float upcast_row(const uint16_t* half, int64_t dim, float* single, uint16_t* bfloat) {
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    const f16 x = load_halves(half + d);
    store(single + d, x);
    if (bfloat) store(bfloat + d, x);
  }
  for (; d < dim; d++) {
    single[d] = load_half(half + d);
    if (bfloat) store_one(bfloat + d, single[d]);
  }
  return dot(single, single, dim);
}

extern "C" {

// False where `rows` names a query that is not there.
bool EXPORT(update_topk)(const void* scores, int64_t is_bfloat16, int64_t stride, int64_t columns,
                         double margin, const float* queries, const float* members, int64_t dim,
                         int64_t num_queries, int64_t num_rows, const int64_t* rows,
                         const int64_t* own, int64_t first, int64_t k, int64_t* index,
                         float* score) {
  for (int64_t i = 0; i < num_rows; i++)
    if (rows[i] < 0 || rows[i] >= num_queries) return false;

  std::vector<float> largest(k + 1);
  const TopK best = {k, first, rows, own, num_rows, index, score, largest.data()};
  const float off = (float)margin;
  if (is_bfloat16)
    update_rows<uint16_t>({(const uint16_t*)scores, stride, columns, off, queries, members, dim},
                          best);
  else
    update_rows<float>({(const float*)scores, stride, columns, off, queries, members, dim}, best);
  return true;
}

// `selected` has room for every member of every query.
void EXPORT(within_radius)(const void* scores, int64_t is_bfloat16, int64_t stride, int64_t columns,
                           double margin, const float* queries, const float* members, int64_t dim,
                           int64_t num_queries, double radius, int64_t* counts, int32_t* selected) {
  const float off = (float)margin, r = (float)radius;
  if (is_bfloat16)
    select_rows<uint16_t>({(const uint16_t*)scores, stride, columns, off, queries, members, dim},
                          num_queries, r, counts, selected);
  else
    select_rows<float>({(const float*)scores, stride, columns, off, queries, members, dim},
                       num_queries, r, counts, selected);
}

// `bfloat` (padded_rows, dim), zeros behind the rows that there are, or null.
void EXPORT(upcast)(int64_t rows, int64_t padded_rows, int64_t dim, const uint16_t* half,
                    float* single, uint16_t* bfloat, float* longest) {
  float squared = 0;
  for (int64_t r = 0; r < rows; r++) {
    uint16_t* bfloat_row = bfloat ? bfloat + r * dim : nullptr;
    const float length = upcast_row(half + r * dim, dim, single + r * dim, bfloat_row);
    if (length > squared) squared = length;
  }
  if (bfloat) memset(bfloat + rows * dim, 0, (padded_rows - rows) * dim * 2);
  *longest = std::sqrt(squared);
}

}  // extern "C"
