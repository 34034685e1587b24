// The kernel of training_attention.cpp over one set of instructions. All products have one form:
//
//     to[r, c] = sum over i of a[r, i] * panel[i, c]
//
// Factors are in units: a float, or with PAIRS two neighbours of i in bfloat16, whose products the CPU adds up in
// float32 (an odd last one is paired with 0). A panel lies in blocks of WIDTH columns, [block, i, WIDTH], with zeros in
// the columns that are missing.

#if PAIRS
using Unit = uint32_t;
constexpr int PER = 2;  // numbers in a unit
INLINE Vec step(Unit a, Vec panel, Vec total) {
    return _mm512_dpbf16_ps(total, as<__m512bh>(panel), as<__m512bh>(_mm512_set1_epi32(int(a))));
}
#else
using Unit = float;
constexpr int PER = 1;
INLINE Vec step(Unit a, Vec panel, Vec total) { return fused(all(a), panel, total); }
#endif

// Rows and vectors of columns whose sums stay in registers: 12 vectors of 16, or 24 of 32.
constexpr int BLOCK = LANES == 16 ? 12 : LANES == 1 ? 2 : 6, VECTORS = LANES >= 8 ? 2 : 4;
constexpr int64_t WIDTH = VECTORS * LANES;
static_assert(BLOCK % PER == 0, "a pair is of one block");

INLINE int64_t whole(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }
INLINE int64_t units(int64_t count) { return up(count, PER); }

// What one key-value head of one sequence needs. Matrices are in rows of channels, in panels of channels, or of tokens
// ("by_token"); probabilities and gradients of logits are those of BLOCK queries, so that memory grows with the
// sequence, not with its square. "columns" have units of two queries.
struct Head {
    Room<Unit> rows, output_rows, keys, keys_by_token, values, values_by_token, queries, output_gradients;
    Room<Unit> factors, probability_columns, gradient_columns;
    Room<float> probabilities, logit_gradients, key_gradients, value_gradients, result;
};

template <int R, int V>
void product(const Unit* a, int64_t row, int64_t column, const Unit* panel, int64_t inner, float* to, int64_t stride,
             bool add) {
    Vec total[R][V];
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int v = 0; v < V; v++) total[r][v] = add ? load(to + r * stride + v * LANES) : all(0);
    for (int64_t i = 0; i < inner; i++, a += column, panel += WIDTH) {
        Vec of[V];
        UNROLLED for (int v = 0; v < V; v++) of[v] = read<Vec>(panel + v * LANES);
        UNROLLED for (int r = 0; r < R; r++) {
            const Unit factor = a[r * row];
            UNROLLED for (int v = 0; v < V; v++) total[r][v] = step(factor, of[v], total[r][v]);
        }
    }
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int v = 0; v < V; v++) store(to + r * stride + v * LANES, total[r][v]);
}

using Product = void (*)(const Unit*, int64_t, int64_t, const Unit*, int64_t, float*, int64_t, bool);

template <int V, int... R>
Product product_of(int64_t rows, std::integer_sequence<int, R...>) {
    static constexpr Product some[] = {product<R + 1, V>...};
    return some[rows - 1];
}

// `rows` (at most BLOCK) rows of a, `row` units apart, `column` from unit to unit; the blocks of the panel are `apart`
// units apart. Writes `columns` rounded up to LANES.
void multiply(const Unit* a, int64_t row, int64_t column, int64_t rows, int64_t inner, const Unit* panel,
              int64_t apart, int64_t columns, float* to, int64_t stride, bool add = false) {
    constexpr auto numbers = std::make_integer_sequence<int, BLOCK>();
    const Product many = product_of<VECTORS>(rows, numbers), few = product_of<1>(rows, numbers);
    for (int64_t c = 0; c < columns; c += WIDTH, panel += apart) {
        if (columns - c > LANES) {
            many(a, row, column, panel, inner, to + c, stride, add);
        } else {
            few(a, row, column, panel, inner, to + c, stride, add);
        }
    }
}

template <class Kind>
void as_rows(const Kind* at, int64_t stride, int64_t count, int64_t d, Unit* to) {
    for (int64_t t = 0; t < count; t++, at += stride, to += units(d)) {
#if PAIRS
        to[units(d) - 1] = 0;
        std::memcpy(to, at, size_t(d) * sizeof(Kind));
#else
        int64_t i = 0;
        for (; i + LANES <= d; i += LANES) store(to + i, load(at + i));
        for (; i < d; i++) to[i] = one(at[i]);
#endif
    }
}

// Panels of channels: units of tokens.
void as_panel(const Unit* rows, int64_t count, int64_t d, Unit* to) {
    for (int64_t c = 0; c < d; c += WIDTH)
        for (int64_t t = 0; t < count; t += PER, to += WIDTH) {
            const int64_t here = std::min(WIDTH, d - c);
            std::memset(to + here, 0, size_t(WIDTH - here) * sizeof(Unit));
#if PAIRS
            const auto* first = reinterpret_cast<const uint16_t*>(rows + t * units(d)) + c;
            const auto* second = reinterpret_cast<const uint16_t*>(rows + (t + 1) * units(d)) + c;
            const bool both = t + 1 < count;
            int64_t i = 0;
            for (; i + LANES <= here; i += LANES) {
                const Bits high = both ? widened(read<Halves>(second + i)) << 16 : Bits{};
                const Bits pairs = widened(read<Halves>(first + i)) | high;
                std::memcpy(to + i, &pairs, sizeof pairs);
            }
            for (; i < here; i++) to[i] = first[i] | (both ? Unit(second[i]) << 16 : 0);
#else
            std::memcpy(to, rows + t * d + c, size_t(here) * sizeof(Unit));
#endif
        }
}

// Panels of tokens: units of channels.
void as_panel_by_token(const Unit* rows, int64_t count, int64_t d, Unit* to) {
    const int64_t inner = units(d);
    for (int64_t first = 0; first < count; first += WIDTH, to += WIDTH * inner) {
        const int64_t here = std::min(WIDTH, count - first);
        if (here < WIDTH) std::memset(to, 0, size_t(WIDTH * inner) * sizeof(Unit));
        for (int64_t t = 0; t < here; t++)
            for (int64_t i = 0; i < inner; i++) to[i * WIDTH + t] = rows[(first + t) * inner + i];
    }
}

// Rows of numbers as the left factor of a product: units of neighbours. Their number is a multiple of LANES.
INLINE const Unit* as_factor(const float* rows, int64_t count, int64_t width, int64_t reach, Unit* to) {
#if PAIRS
    for (int64_t r = 0; r < count; r++)
        for (int64_t j = 0; j < reach; j += LANES)
            store(reinterpret_cast<uint16_t*>(to + r * width) + j, load(rows + r * width + j));
    return to;
#else
    (void)count, (void)width, (void)reach, (void)to;
    return rows;
#endif
}

// The same for their columns: units of two rows, [unit, width].
INLINE const Unit* as_column_factor(const float* rows, int64_t count, int64_t width, int64_t reach, Unit* to) {
#if PAIRS
    for (int64_t r = 0; r < count; r += 2)
        for (int64_t j = 0; j < reach; j += LANES) {
            const Bits first = rounded(load(rows + r * width + j)) >> 16;
            const Bits second = r + 1 < count ? rounded(load(rows + (r + 1) * width + j)) & 0xffff0000u : Bits{};
            const Bits pairs = first | second;
            std::memcpy(to + r / 2 * width + j, &pairs, sizeof pairs);
        }
    return to;
#else
    (void)count, (void)width, (void)reach, (void)to;
    return rows;
#endif
}

template <class Kind>
void write(const float* rows, int64_t stride, int64_t count, int64_t d, float factor, Kind* to, int64_t apart) {
    for (int64_t t = 0; t < count; t++, rows += stride, to += apart) {
        int64_t i = 0;
        for (; i + LANES <= d; i += LANES) store(to + i, load(rows + i) * factor);
        for (; i < d; i++) put(to + i, rows[i] * factor);
    }
}

// Logits of one query: scaled, with the biases of their distances, -inf from `count` up to `width`.
INLINE void finish_logits(float* logits, int64_t count, int64_t width, float scale, const float* distances) {
    for (int64_t j = 0; j < count; j++) logits[j] = logits[j] * scale + (distances ? distances[j] : 0.0f);
    for (int64_t j = count; j < width; j++) logits[j] = -INFINITY;
}

// The biases of the distances of a query to the keys of its sequence, from key 0 on.
template <class Kind>
INLINE const float* biases(const Task<Kind>& w, int64_t h, int64_t query) {
    return w.distances ? w.distances + h * (2 * w.longest - 1) + w.longest - 1 - query : nullptr;
}

template <class Kind>
void forward(const Task<Kind>& w, int64_t index) {
    static thread_local Head head;
    const int64_t segment = index / w.kv_heads, kv = index % w.kv_heads, group = w.heads / w.kv_heads, d = w.d;
    const int64_t start = w.starts[segment], n = w.counts[segment], m = w.key_counts[segment];
    const int64_t width = whole(m), wide = whole(d), inner = units(d), tokens = units(m);
    Unit* rows = head.rows.of(std::max(n, m) * inner);
    as_rows(w.k.at + start * w.k.stride + kv * d, w.k.stride, m, d, rows);
    as_panel_by_token(rows, m, d, head.keys_by_token.of(width * inner));
    as_rows(w.v.at + start * w.v.stride + kv * d, w.v.stride, m, d, rows);
    as_panel(rows, m, d, head.values.of(tokens * wide));
    float* probabilities = head.probabilities.of(BLOCK * width);
    float* result = head.result.of(BLOCK * wide);
    Unit* factors = head.factors.of(BLOCK * width);
    const float scale = 1.0f / std::sqrt(float(d));
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        as_rows(w.q.at + start * w.q.stride + h * d, w.q.stride, n, d, rows);
        for (int64_t first = 0; first < n; first += BLOCK) {
            const int64_t block = std::min<int64_t>(BLOCK, n - first), reach = w.causal ? first + block : m;
            const int64_t end = whole(reach);
            multiply(rows + first * inner, inner, 1, block, inner, head.keys_by_token.first, WIDTH * inner, reach,
                     probabilities, width);
            for (int64_t r = 0; r < block; r++) {
                const int64_t query = first + r, count = w.causal ? query + 1 : m;
                float* logits = probabilities + r * width;
                finish_logits(logits, count, end, scale, biases(w, h, query));
                Vec high = all(-INFINITY);
                for (int64_t j = 0; j < end; j += LANES) high = most(load(logits + j), high);
                const float highest = most(high);
                Vec total = all(0);
                for (int64_t j = 0; j < end; j += LANES) {
                    const Vec probability = exponential(load(logits + j) - highest);
                    store(logits + j, probability);
                    total += probability;
                }
                const float all_exponentials = sum(total), inverse = 1.0f / all_exponentials;
                w.sums[(start + query) * w.heads + h] = highest + std::log(all_exponentials);
                for (int64_t j = 0; j < end; j += LANES) store(logits + j, load(logits + j) * inverse);
            }
            const Unit* factor = as_factor(probabilities, block, width, end, factors);
            multiply(factor, width, 1, block, units(reach), head.values.first, tokens * WIDTH, d, result, wide);
            write(result, wide, block, d, 1.0f, w.y + ((start + first) * w.heads + h) * d, w.heads * d);
        }
    }
}

template <class Kind>
void backward(const Task<Kind>& w, int64_t index) {
    static thread_local Head head;
    const int64_t segment = index / w.kv_heads, kv = index % w.kv_heads, group = w.heads / w.kv_heads, d = w.d;
    const int64_t start = w.starts[segment], n = w.counts[segment], m = w.key_counts[segment];
    const int64_t width = whole(m), wide = whole(d), inner = units(d), tokens = units(m), queries = units(n);
    Unit *rows = head.rows.of(std::max(n, m) * inner), *output_rows = head.output_rows.of(n * inner);
    as_rows(w.k.at + start * w.k.stride + kv * d, w.k.stride, m, d, rows);
    as_panel(rows, m, d, head.keys.of(tokens * wide));
    as_panel_by_token(rows, m, d, head.keys_by_token.of(width * inner));
    as_rows(w.v.at + start * w.v.stride + kv * d, w.v.stride, m, d, rows);
    as_panel_by_token(rows, m, d, head.values_by_token.of(width * inner));
    float* probabilities = head.probabilities.of(BLOCK * width);
    float* logit_gradients = head.logit_gradients.of(BLOCK * width);
    float *key_gradients = head.key_gradients.of(n * wide), *value_gradients = head.value_gradients.of(n * wide);
    std::memset(key_gradients, 0, size_t(n * wide) * sizeof(float));
    std::memset(value_gradients, 0, size_t(n * wide) * sizeof(float));
    float* result = head.result.of(BLOCK * wide);
    Unit* factors = head.factors.of(BLOCK * width);
    Unit* probability_columns = head.probability_columns.of(BLOCK * width);
    Unit* gradient_columns = head.gradient_columns.of(BLOCK * width);
    const float scale = 1.0f / std::sqrt(float(d));
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        as_rows(w.q.at + start * w.q.stride + h * d, w.q.stride, n, d, rows);
        as_rows(w.dy + (start * w.heads + h) * d, w.heads * d, n, d, output_rows);
        as_panel(rows, n, d, head.queries.of(queries * wide));
        as_panel(output_rows, n, d, head.output_gradients.of(queries * wide));
        for (int64_t first = 0; first < n; first += BLOCK) {
            const int64_t block = std::min<int64_t>(BLOCK, n - first), reach = w.causal ? first + block : m;
            const int64_t end = whole(reach);
            multiply(rows + first * inner, inner, 1, block, inner, head.keys_by_token.first, WIDTH * inner, reach,
                     probabilities, width);
            multiply(output_rows + first * inner, inner, 1, block, inner, head.values_by_token.first, WIDTH * inner,
                     reach, logit_gradients, width);
            for (int64_t r = 0; r < block; r++) {
                const int64_t query = first + r, count = w.causal ? query + 1 : m;
                float *probability = probabilities + r * width, *gradient = logit_gradients + r * width;
                finish_logits(probability, count, end, scale, biases(w, h, query));
                for (int64_t j = count; j < end; j++) gradient[j] = 0.0f;
                const float log_sum = w.sums[(start + query) * w.heads + h];
                Vec total = all(0);
                for (int64_t j = 0; j < end; j += LANES) {
                    const Vec part = exponential(load(probability + j) - log_sum);
                    store(probability + j, part);
                    total += part * load(gradient + j);
                }
                const float mean = sum(total);
                for (int64_t j = 0; j < end; j += LANES)
                    store(gradient + j, load(probability + j) * (load(gradient + j) - mean));
                if (w.of_distances) {
                    float* to = w.of_distances + (segment * w.heads + h) * (2 * w.longest - 1) + w.longest - 1 - query;
                    for (int64_t j = 0; j < count; j++) to[j] += gradient[j];
                }
            }
            const Unit* by_query = as_factor(logit_gradients, block, width, end, factors);
            multiply(by_query, width, 1, block, units(reach), head.keys.first, tokens * WIDTH, d, result, wide);
            write(result, wide, block, d, scale, w.dq + ((start + first) * w.heads + h) * d, w.heads * d);
            const Unit* shares = as_column_factor(probabilities, block, width, end, probability_columns);
            const Unit* gradients = as_column_factor(logit_gradients, block, width, end, gradient_columns);
            const int64_t apart = queries * WIDTH, at = first / PER * WIDTH, some = units(block);
            for (int64_t j = 0; j < reach; j += BLOCK) {  // keys in rows, sums over this block of queries
                const int64_t keys = std::min<int64_t>(BLOCK, reach - j);
                multiply(shares + j, 1, width, keys, some, head.output_gradients.first + at, apart, d,
                         value_gradients + j * wide, wide, true);
                multiply(gradients + j, 1, width, keys, some, head.queries.first + at, apart, d,
                         key_gradients + j * wide, wide, true);
            }
        }
    }
    write(key_gradients, wide, n, d, scale, w.dk + (start * w.kv_heads + kv) * d, w.kv_heads * d);
    write(value_gradients, wide, n, d, 1.0f, w.dv + (start * w.kv_heads + kv) * d, w.kv_heads * d);
}
