// The kernel of bf16.cpp over one set of instructions.

// Tokens and vectors of outputs whose sums stay in registers: 12 vectors of 16, or 24 of 32.
constexpr int BLOCK = LANES == 16 ? 12 : LANES == 1 ? 2 : 6, VECTORS = LANES >= 8 ? 2 : LANES == 4 ? 4 : 8;
constexpr int PANEL = VECTORS * LANES;  // outputs of a panel
static_assert(PANEL % 8 == 0, "weights are transposed eight by eight");

// Converts k bfloat16 numbers to floats.
void wide(const uint16_t* x, int64_t k, float* out) {
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) store(out + i, load(x + i));
    for (; i < k; i++) out[i] = one(x[i]);
}

// The dot products of a row of weights and T tokens; the order of each sum doesn't depend on T.
template <int T>
INLINE void dot(const Work& work, int64_t token, int64_t row, bool prefetch) {
    const uint16_t* at = work.w + row * work.k;
    const float* x = work.x + token * work.stride;
    Vec total[T][2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= work.k; i += 2 * LANES) {
        if (prefetch) __builtin_prefetch(at + i + AHEAD);
        UNROLLED for (int half = 0; half < 2; half++) {
            const Vec weights = load(at + i + half * LANES);
            UNROLLED for (int t = 0; t < T; t++)
                total[t][half] = fused(weights, load(x + t * work.stride + i + half * LANES), total[t][half]);
        }
    }
    for (int t = 0; t < T; t++) {
        float all_of_it = sum(total[t][0] + total[t][1]);
        for (int64_t j = i; j < work.k; j++) all_of_it += one(at[j]) * x[t * work.stride + j];
        work.results.put((token + t) * work.n + row, row, all_of_it);
    }
}

// The products of weight rows `begin` to `end` and a few tokens.
void rows(const Work& work, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
        int64_t token = 0;
        for (; token + 4 <= work.m; token += 4) dot<4>(work, token, row, token == 0);
        switch (work.m - token) {
            case 3: dot<3>(work, token, row, token == 0); break;
            case 2: dot<2>(work, token, row, token == 0); break;
            case 1: dot<1>(work, token, row, token == 0); break;
        }
    }
}

// Transposes eight inputs of eight outputs, `stride` apart, to floats [8, PANEL].
INLINE void transpose(const uint16_t* w, int64_t stride, float* to) {
#if POLYPHI_X86
    __m128i a[8], b[8];
    UNROLLED for (int i = 0; i < 8; i++) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w + i * stride));
    UNROLLED for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    UNROLLED for (int i = 0; i < 2; i++)
        UNROLLED for (int j = 0; j < 2; j++) {
            a[4 * i + 2 * j] = _mm_unpacklo_epi32(b[4 * i + j], b[4 * i + 2 + j]);
            a[4 * i + 2 * j + 1] = _mm_unpackhi_epi32(b[4 * i + j], b[4 * i + 2 + j]);
        }
    UNROLLED for (int j = 0; j < 4; j++) {
        b[2 * j] = _mm_unpacklo_epi64(a[j], a[4 + j]);
        b[2 * j + 1] = _mm_unpackhi_epi64(a[j], a[4 + j]);
    }
    UNROLLED for (int j = 0; j < 8; j++) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j * PANEL), _mm_unpacklo_epi16(__m128i{}, b[j]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j * PANEL + 4), _mm_unpackhi_epi16(__m128i{}, b[j]));
    }
#else
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 8; i++) to[j * PANEL + i] = from_bf16(w[i * stride + j]);
#endif
}

// Packs inputs `from` to `from + depth` of a panel's outputs to [depth, PANEL]; missing outputs are 0.
void pack(const Work& work, int64_t panel, int64_t from, int64_t depth, float* to) {
    const int64_t there = std::min<int64_t>(PANEL, work.n - panel * PANEL);
    const uint16_t* w = work.w + panel * PANEL * work.k + from;
    for (int64_t o = 0; o < PANEL; o += 8) {
        int64_t i = 0;
        if (o + 8 <= there)
            for (; i + 8 <= depth; i += 8) transpose(w + o * work.k + i, work.k, to + i * PANEL + o);
        for (; i < depth; i++)
            for (int64_t j = o; j < o + 8; j++) to[i * PANEL + j] = j < there ? from_bf16(w[j * work.k + i]) : 0;
    }
}

// Adds the products of T tokens and a panel over `depth` inputs to sums [T, PANEL].
template <int T>
void tile(const float* x, int64_t stride, const float* w, int64_t depth, float* sums) {
    Vec total[T][VECTORS];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int v = 0; v < VECTORS; v++) total[t][v] = load(sums + t * PANEL + v * LANES);
    for (int64_t i = 0; i < depth; i++, w += PANEL) {
        Vec weights[VECTORS];
        UNROLLED for (int v = 0; v < VECTORS; v++) weights[v] = load(w + v * LANES);
        UNROLLED for (int t = 0; t < T; t++) {
            const Vec value = all(x[t * stride + i]);
            UNROLLED for (int v = 0; v < VECTORS; v++) total[t][v] = fused(value, weights[v], total[t][v]);
        }
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int v = 0; v < VECTORS; v++) store(sums + t * PANEL + v * LANES, total[t][v]);
}

using Tile = void (*)(const float*, int64_t, const float*, int64_t, float*);

template <int... T>
Tile tile_of(int64_t tokens, std::integer_sequence<int, T...>) {
    static constexpr Tile tiles[] = {tile<T + 1>...};
    return tiles[tokens - 1];
}

// Stores the sums of a token and a panel in the results.
template <typename To>
void finish(const Work& work, int64_t token, int64_t panel, const float* sums) {
    const Results& r = work.results;
    const int64_t first = panel * PANEL, there = std::min<int64_t>(PANEL, work.n - first);
    To* to = static_cast<To*>(r.y) + token * work.n + first;
    int64_t o = 0;
    for (; o + LANES <= there; o += LANES) {
        Vec value = load(sums + o);
        if (r.bias) value += load(r.bias + first + o);
        value = value * r.scale;
        if (r.keep) value += load(to + o) * r.keep;
        store(to + o, value);
    }
    for (; o < there; o++) r.put(to + o, first + o, sums[o]);
}

// The products of panels `begin` to `end` and all tokens.
void panels(const Work& work, int64_t begin, int64_t end) {
    const int64_t count = end - begin, each = DEPTH * PANEL;
    float *packed = scratch(count * each + count * work.m * PANEL), *sums = packed + count * each;
    std::memset(sums, 0, size_t(count * work.m * PANEL) * sizeof(float));
    for (int64_t from = 0; from < work.k; from += DEPTH) {
        const int64_t depth = std::min(DEPTH, work.k - from);
        for (int64_t p = 0; p < count; p++) pack(work, begin + p, from, depth, packed + p * each);
        for (int64_t share = 0; share < work.m; share += SHARE)
            for (int64_t p = 0; p < count; p++) {
                const int64_t last = std::min(work.m, share + SHARE);
                for (int64_t token = share; token < last; token += BLOCK) {
                    const int64_t tokens = std::min<int64_t>(BLOCK, last - token);
                    const Tile run = tile_of(tokens, std::make_integer_sequence<int, BLOCK>());
                    run(work.x + token * work.stride + from, work.stride, packed + p * each, depth,
                        sums + (p * work.m + token) * PANEL);
                }
            }
    }
    for (int64_t token = 0; token < work.m; token++)
        for (int64_t p = 0; p < count; p++) {
            const float* of = sums + (p * work.m + token) * PANEL;
            if (work.results.bf16)
                finish<uint16_t>(work, token, begin + p, of);
            else
                finish<float>(work, token, begin + p, of);
        }
}
