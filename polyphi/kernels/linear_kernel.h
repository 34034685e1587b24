// The kernel of linear.cpp over one set of instructions, whose registers the including namespace has defined: LANES
// outputs in one, and at most MOST tokens with `wide_for` of them side by side, so that all sums stay in registers.

// T tokens by W registers of outputs of a panel of 4 bits, from `column` on; sums [T, W * LANES].
template <int T, int W>
void four_bits(const Tokens& x, int64_t token, const uint8_t* group, int column, float* sums) {
    const int8_t* a = x.a + token * x.groups * GROUP;
    const int32_t* minus = x.minus + token * x.groups;
    const int64_t stride = x.groups * GROUP;
    Real total[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) total[t][w] = nothing();
    for (int64_t g = 0; g < x.groups; g++, group += BYTES4, a += GROUP, minus++) {
        if (column == 0)
            for (int line = 0; line < BYTES4; line += 64) ask(group + AHEAD * BYTES4 + line);
        Int sum[T][W];
        UNROLLED for (int t = 0; t < T; t++)
            UNROLLED for (int w = 0; w < W; w++) sum[t][w] = zero();
        UNROLLED for (int j = 0; j < GROUP / 2; j += QUAD) {
            const uint8_t* at = group + j * PANEL + column * QUAD;
            Int lows[W], highs[W];
            UNROLLED for (int w = 0; w < W; w++) {
                const Int pairs = load(at + w * LANES * QUAD);
                lows[w] = low(pairs);
                highs[w] = high(pairs);
            }
            UNROLLED for (int t = 0; t < T; t++) {
                const Int first = four(a + t * stride + j), second = four(a + t * stride + GROUP / 2 + j);
                UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot4(sum[t][w], lows[w], first);
                UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot4(sum[t][w], highs[w], second);
            }
        }
        UNROLLED for (int w = 0; w < W; w++) {
            const uint8_t* s = group + NIBBLES + column + w * LANES;
            const Real scale = bytes(s);
            UNROLLED for (int t = 0; t < T; t++) {
                const Int settled_sum = settled(sum[t][w], s + PANEL, minus[t * x.groups]);
                total[t][w] = scaled(settled_sum, scale, total[t][w]);
            }
        }
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) store(sums + (t * W + w) * LANES, total[t][w]);
}

// The same of 8 bits.
template <int T, int W>
void eight_bits(const Tokens& x, int64_t token, const uint8_t* panel, int column, float* sums) {
    const int64_t stride = x.groups * GROUP;
    const int8_t* a = x.a + token * stride;
    const uint8_t* at = panel + column * QUAD;
    Int sum[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) sum[t][w] = zero();
    for (int64_t i = 0; i < stride; i += QUAD, at += BYTES8) {
        if (column == 0)
            for (int line = 0; line < BYTES8; line += 64) ask(at + 32 * BYTES8 + line);
        Int weights[W];
        UNROLLED for (int w = 0; w < W; w++) weights[w] = load(at + w * LANES * QUAD);
        UNROLLED for (int t = 0; t < T; t++) {
            const Int activations = four(a + t * stride + i);
            UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot8(sum[t][w], weights[w], activations);
        }
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) {
            const Int all = OFFSET ? plus(sum[t][w], -128 * x.total[token + t]) : sum[t][w];
            store(sums + (t * W + w) * LANES, real(all));
        }
}

// `sums` [tokens, width] of outputs from `first` on, to where results go.
template <typename To>
void finish(const Results& results, const Tokens& x, int64_t token, int tokens, int64_t first, int width,
            const float* sums) {
    const float *row = results.row + first, *bias = results.bias ? results.bias + first : nullptr;
    const int there = int(std::clamp<int64_t>(results.n - first, 0, width));
    for (int t = 0; t < tokens; t++, token++, sums += width) {
        To* at = static_cast<To*>(results.y) + token * results.n + first;
        const float scale = x.scale[token] * results.unit;
        int o = 0;
        for (; o + LANES <= there; o += LANES) {
            Vec value = load(sums + o) * (load(row + o) * scale);
            if (bias) value += load(bias + o);
            if (results.add) value += load(at + o);
            store(at + o, value);
        }
        for (; o < there; o++) {
            float value = sums[o] * (row[o] * scale);
            if (bias) value += bias[o];
            if (results.add) value += one(at[o]);
            put(at + o, value);
        }
    }
}

struct Columns {
    void (*run)(const Tokens&, int64_t, const uint8_t*, int, float*);
    int width;  // outputs
};

// One panel by tokens from `first` to `last`, in even shares.
void panel(const Columns* columns, const Tokens& x, const Results& results, const uint8_t* weights, int64_t index,
           int64_t first, int64_t last) {
    for (int64_t blocks = up(last - first, MOST), token = first; token < last; blocks--) {
        const int tokens = int(up(last - token, blocks));
        const Columns& chosen = columns[tokens - 1];
        for (int t = 0; t < tokens; t++) ask(results.at(token + t, index * PANEL));  // they come meanwhile
        for (int column = 0; column < PANEL; column += chosen.width) {
            float sums[MOST * PANEL];
            chosen.run(x, token, weights, column, sums);
            const auto end = results.bf16 ? finish<uint16_t> : finish<float>;
            end(results, x, token, tokens, index * PANEL + column, chosen.width, sums);
        }
        token += tokens;
    }
}

template <int... T>
void panels(int bits, const Tokens& x, const Results& results, const uint8_t* w, int64_t begin, int64_t end,
            std::integer_sequence<int, T...>) {
    static constexpr Columns fours[] = {{four_bits<T + 1, wide_for(T + 1, 4)>, wide_for(T + 1, 4) * LANES}...};
    static constexpr Columns eights[] = {{eight_bits<T + 1, wide_for(T + 1, 8)>, wide_for(T + 1, 8) * LANES}...};
    for (int64_t blocks = up(x.m, TOKENS), first = 0, last; first < x.m; first = last, blocks--) {
        last = std::min(x.m, first + up(up(x.m - first, blocks), MOST) * MOST);
        for (int64_t i = begin; i < end; i++) {
            if (bits == 4)
                panel(fours, x, results, w + i * x.groups * BYTES4, i, first, last);
            else
                panel(eights, x, results, w + i * x.groups * GROUP * PANEL, i, first, last);
        }
    }
}

void panels4(const Tokens& x, const Results& results, const uint8_t* w, int64_t begin, int64_t end) {
    panels(4, x, results, w, begin, end, std::make_integer_sequence<int, MOST>());
}

void panels8(const Tokens& x, const Results& results, const uint8_t* w, int64_t begin, int64_t end) {
    panels(8, x, results, w, begin, end, std::make_integer_sequence<int, MOST>());
}

// One token's k activations, whose bits `at` tells, as int8 of which the largest is 127. A token with one that is no
// finite number gets a scale that is none.
template <typename At>
void quantise_token(const At& at, int64_t k, int64_t groups, int8_t* a, float* scale, int32_t* minus, int32_t* total) {
    uint32_t most = 0;
    for (int64_t i = 0; i < k; i++) most = std::max(most, at(i) & 0x7fffffff);
    float largest;
    std::memcpy(&largest, &most, 4);
    const bool finite = most < 0x7f800000;
    *scale = finite ? std::max(largest / 127.0f, 1e-30f) : NAN;
    const float inverse = finite ? 1.0f / *scale : 0.0f;
    *total = 0;
    for (int64_t g = 0; g < groups; g++, a += GROUP) {
        const int64_t there = std::min<int64_t>(GROUP, k - g * GROUP);
        float values[GROUP] = {};
        for (int64_t i = 0; i < there; i++) {
            const uint32_t bits = at(g * GROUP + i);
            std::memcpy(values + i, &bits, 4);
        }
        int32_t sum = 0;
        for (int i = 0; i < GROUP; i++) {
            // Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits.
            const float shifted = values[i] * inverse + 12582912.0f;
            int32_t whole;
            std::memcpy(&whole, &shifted, 4);
            whole = finite ? whole - 0x4b400000 : 0;
            a[i] = int8_t(whole);
            sum += whole;
        }
        minus[g] = int32_t(uint16_t(-sum));
        *total += sum;
    }
}

// Tokens `begin` to `end` of x [m k], float32 or bfloat16, as `Tokens` has them.
void quantise(const void* x, bool bf16, int64_t begin, int64_t end, int64_t k, int8_t* a, float* scale, int32_t* minus,
              int32_t* total) {
    const int64_t groups = up(k, GROUP);
    for (int64_t t = begin; t < end; t++) {
        const uint32_t* wide = static_cast<const uint32_t*>(x) + t * k;
        const uint16_t* half = static_cast<const uint16_t*>(x) + t * k;
        int8_t* at = a + t * groups * GROUP;
        if (bf16)
            quantise_token([half](int64_t i) { return uint32_t(half[i]) << 16; }, k, groups, at, scale + t,
                           minus + t * groups, total + t);
        else
            quantise_token([wide](int64_t i) { return wide[i]; }, k, groups, at, scale + t, minus + t * groups, total + t);
    }
}
