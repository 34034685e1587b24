// The kernel of half.cpp over one set of instructions.

// k numbers of bfloat16 as floats.
void wide(const uint16_t* x, int64_t k, float* out) {
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) store(out + i, load(x + i));
    for (; i < k; i++) out[i] = one(x[i]);
}

// Rows from `begin` to `end` of the weights [n k] by a token.
void rows(const float* x, int64_t k, const uint16_t* w, const Results& results, int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; index++) {
        const uint16_t* at = w + index * k;
        Vec first = all(0), second = all(0);
        int64_t i = 0;
        for (; i + 2 * LANES <= k; i += 2 * LANES) {
            __builtin_prefetch(at + i + AHEAD);
            first += load(at + i) * load(x + i);
            second += load(at + i + LANES) * load(x + i + LANES);
        }
        float total = sum(first + second);
        for (; i < k; i++) total += one(at[i]) * x[i];
        results.put(index, total);
    }
}
