// The loop of the overlap of pairs: what share of the smaller document's runs of n tokens the other
// one also holds. `overlap.py` says what goes in and out.

// Texts end to end, text i at bounds[i] up to bounds[i + 1].
struct Texts {
  const int32_t* tokens;
  const int64_t* bounds;
  int64_t count;

  bool has(int64_t i) const { return i >= 0 && i < count; }
  const int32_t* text(int64_t i) const { return tokens + bounds[i]; }
  int64_t length(int64_t i) const { return bounds[i + 1] - bounds[i]; }
};

// The different runs of n tokens of one text: found by their hash, told apart token by token.
struct Runs {
  const int32_t* text;
  int64_t n, different;
  std::vector<uint64_t> hashes;
  std::vector<int64_t> places;  // where in the text, by slot; -1: the slot is free

  // Starts with none, and room for as many runs as a text of so many tokens can have.
  void begin(const int32_t* of, int64_t length, int64_t of_tokens) {
    text = of;
    n = of_tokens;
    different = 0;
    uint64_t slots = 16;
    while ((int64_t)slots < 2 * length) slots *= 2;
    hashes.resize(slots);
    places.assign(slots, -1);
  }

  // The slot of an equal run, or the free one where it belongs.
  uint64_t find(uint64_t hash, const int32_t* run) const {
    const uint64_t mask = places.size() - 1;
    // the high bits, which all tokens of a run reach
    uint64_t slot = (hash * 0x9E3779B97F4A7C15u >> 32) & mask;
    for (; places[slot] >= 0; slot = (slot + 1) & mask)
      if (hashes[slot] == hash && !memcmp(text + places[slot], run, n * sizeof(int32_t))) break;
    return slot;
  }

  bool holds(uint64_t hash, const int32_t* run) const { return places[find(hash, run)] >= 0; }

  // Whether the run at this place is one that it did not hold yet.
  bool add(uint64_t hash, int64_t place) {
    const uint64_t slot = find(hash, text + place);
    if (places[slot] >= 0) return false;
    hashes[slot] = hash;
    places[slot] = place;
    different++;
    return true;
  }
};

// Calls `visit(hash, place)` for every run of n tokens of a text, which has at least so many.
template <class Visit>
INLINE void each_run(const int32_t* text, int64_t length, int64_t n, Visit visit) {
  const uint64_t multiplier = 0xBF58476D1CE4E5B9u;
  uint64_t hash = 0, first = 1;  // `first` is what the first token of a run counts for
  for (int64_t j = 0; j < n; j++) {
    hash = hash * multiplier + (uint64_t)text[j] + 1;
    if (j) first *= multiplier;
  }
  for (int64_t place = 0;; place++) {
    visit(hash, place);
    if (place + n >= length) return;
    const uint64_t leaves = (uint64_t)text[place] + 1, comes = (uint64_t)text[place + n] + 1;
    hash = (hash - first * leaves) * multiplier + comes;
  }
}

extern "C" {

// False where `x` or `y` names a text that is not there.
bool EXPORT(containments)(const int32_t* a_tokens, const int64_t* a_bounds, int64_t a_count,
                          const int32_t* b_tokens, const int64_t* b_bounds, int64_t b_count,
                          int64_t pairs, const int64_t* x, const int64_t* y, int64_t n,
                          double* shares) {
  const Texts a = {a_tokens, a_bounds, a_count}, b = {b_tokens, b_bounds, b_count};
  Runs held, seen;
  int64_t of = -1;  // the text whose runs are held
  for (int64_t i = 0; i < pairs; i++) {
    if (!a.has(x[i]) || !b.has(y[i])) return false;
    const int32_t* other = b.text(y[i]);
    const int64_t length = a.length(x[i]), other_length = b.length(y[i]);
    const int64_t shorter = length < other_length ? length : other_length;
    const int64_t size = shorter < n ? shorter : n;
    if (!size) {  // a text of no tokens has no runs
      shares[i] = 0;
      continue;
    }

    // pairs of one text follow each other
    if (of != x[i] || held.n != size) {
      of = x[i];
      held.begin(a.text(of), length, size);
      each_run(held.text, length, size, [&](uint64_t hash, int64_t place) { held.add(hash, place); });
    }
    int64_t common = 0;
    seen.begin(other, other_length, size);
    each_run(other, other_length, size, [&](uint64_t hash, int64_t place) {
      if (seen.add(hash, place)) common += held.holds(hash, other + place);
    });
    const int64_t smaller = held.different < seen.different ? held.different : seen.different;
    shares[i] = (double)common / (double)smaller;
  }
  return true;
}

}  // extern "C"
