// The kernel of half.cpp over one set of instructions, whose registers (LANES floats) the including namespace has defined.

constexpr int MOST = 8;  // tokens whose sums stay in registers
constexpr int64_t STEP = 2 * LANES;

// One token's k activations, which `at` tells, as `Tokens` has them.
template <typename At>
void sort(const At& at, int64_t k, float* out) {
    int64_t i = 0;
    for (; i + STEP <= k; i += STEP)
        for (int j = 0; j < LANES; j++) {
            out[i + j] = at(i + 2 * j);
            out[i + LANES + j] = at(i + 2 * j + 1);
        }
    for (; i < k; i++) out[i] = at(i);
}

void sorted(const void* x, bool bf16, int64_t k, float* out) {
    const uint16_t* halves = static_cast<const uint16_t*>(x);
    const float* wide = static_cast<const float*>(x);
    if (bf16)
        sort([halves](int64_t i) { return from_bf16(halves[i]); }, k, out);
    else
        sort([wide](int64_t i) { return wide[i]; }, k, out);
}

// One row by T tokens.
template <int T>
void row(const Tokens& x, const Results& results, const uint16_t* w, int64_t index, int64_t token) {
    const float* at = x.x + token * x.k;
    Real sums[T][2];
    UNROLLED for (int t = 0; t < T; t++) sums[t][0] = sums[t][1] = nothing();
    int64_t i = 0;
    for (; i + STEP <= x.k; i += STEP) {
        ask(w + i + AHEAD / 2);
        const Halves pairs = load(w + i);
        const Real first = even(pairs), second = odd(pairs);
        UNROLLED for (int t = 0; t < T; t++) {
            sums[t][0] = fused(first, real(at + t * x.k + i), sums[t][0]);
            sums[t][1] = fused(second, real(at + t * x.k + i + LANES), sums[t][1]);
        }
    }
    for (int t = 0; t < T; t++) {
        float sum = all(sums[t][0]) + all(sums[t][1]);
        for (int64_t rest = i; rest < x.k; rest++) sum = std::fma(from_bf16(w[rest]), at[t * x.k + rest], sum);
        results.put(token + t, index, sum);
    }
}

template <int... T>
void rows(const Tokens& x, const Results& results, const uint16_t* w, int64_t begin, int64_t end,
          std::integer_sequence<int, T...>) {
    using Row = void (*)(const Tokens&, const Results&, const uint16_t*, int64_t, int64_t);
    static constexpr Row of[] = {row<T + 1>...};
    for (int64_t index = begin; index < end; index++)
        for (int64_t token = 0; token < x.m; token += MOST)
            of[std::min<int64_t>(MOST, x.m - token) - 1](x, results, w + index * x.k, index, token);
}

void rows(const Tokens& x, const Results& results, const uint16_t* w, int64_t begin, int64_t end) {
    rows(x, results, w, begin, end, std::make_integer_sequence<int, MOST>());
}
