// The kernel of half.cpp over one set of instructions, whose registers (LANES floats) the including namespace has defined.

constexpr int64_t STEP = 2 * LANES;

// One token's k activations, which `at` tells, sorted as half.cpp says.
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

// Rows from `begin` to `end` of the weights [n k] by a token.
void rows(const float* x, int64_t k, const uint16_t* w, const Results& results, int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; index++) {
        const uint16_t* at = w + index * k;
        Real first = nothing(), second = nothing();
        int64_t i = 0;
        for (; i + STEP <= k; i += STEP) {
            ask(at + i + AHEAD / 2);
            const Halves pairs = load(at + i);
            first = fused(even(pairs), real(x + i), first);
            second = fused(odd(pairs), real(x + i + LANES), second);
        }
        float sum = all(first) + all(second);
        for (; i < k; i++) sum = std::fma(from_bf16(at[i]), x[i], sum);
        results.put(index, sum);
    }
}
