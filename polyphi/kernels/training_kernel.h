// The kernel of training_attention.cpp over one set of instructions. All sums are products of one form:
//
//     to[r, c] = sum over i of a[r, i] * panel[i, c]
//
// A panel lies in blocks of WIDTH columns, [block, i, WIDTH], with zeros in the columns that are missing.

// Rows and vectors of columns whose sums stay in registers: 12 vectors of 16, or 24 of 32.
constexpr int BLOCK = LANES == 16 ? 12 : LANES == 1 ? 2 : 6, VECTORS = LANES >= 8 ? 2 : 4;
constexpr int64_t WIDTH = VECTORS * LANES;

INLINE int64_t whole(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// What one key-value head of one sequence of n tokens needs: matrices in rows of d (and w, the width of the logits), as
// panels of channels or of tokens ("by_token"), and the gradients of its keys and values.
struct Head {
    Room<float> rows, row_gradients, keys, keys_by_token, values, values_by_token, queries, gradients;
    Room<float> shares, slopes, key_gradients, value_gradients, result;
};

template <int R, int V>
void product(const float* a, int64_t row, int64_t column, const float* panel, int64_t inner, float* to, int64_t stride,
             bool add) {
    Vec total[R][V];
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int v = 0; v < V; v++) total[r][v] = add ? load(to + r * stride + v * LANES) : all(0);
    for (int64_t i = 0; i < inner; i++, a += column, panel += WIDTH) {
        Vec of[V];
        UNROLLED for (int v = 0; v < V; v++) of[v] = load(panel + v * LANES);
        UNROLLED for (int r = 0; r < R; r++) {
            const Vec factor = all(a[r * row]);
            UNROLLED for (int v = 0; v < V; v++) total[r][v] = fused(factor, of[v], total[r][v]);
        }
    }
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int v = 0; v < V; v++) store(to + r * stride + v * LANES, total[r][v]);
}

using Product = void (*)(const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int V, int... R>
Product product_of(int64_t rows, std::integer_sequence<int, R...>) {
    static constexpr Product some[] = {product<R + 1, V>...};
    return some[rows - 1];
}

// `rows` (at most BLOCK) rows of a, `row` numbers apart, `column` from number to number; the blocks of the panel are
// `apart` numbers apart. Writes `columns` rounded up to LANES.
void multiply(const float* a, int64_t row, int64_t column, int64_t rows, int64_t inner, const float* panel,
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
void as_rows(const Kind* at, int64_t stride, int64_t count, int64_t d, float* to) {
    for (int64_t t = 0; t < count; t++, at += stride, to += d) {
        int64_t i = 0;
        for (; i + LANES <= d; i += LANES) store(to + i, load(at + i));
        for (; i < d; i++) to[i] = one(at[i]);
    }
}

void as_panel(const float* rows, int64_t count, int64_t d, float* to) {
    for (int64_t c = 0; c < d; c += WIDTH)
        for (int64_t t = 0; t < count; t++, to += WIDTH) {
            const int64_t here = std::min(WIDTH, d - c);
            std::memcpy(to, rows + t * d + c, size_t(here) * sizeof(float));
            std::memset(to + here, 0, size_t(WIDTH - here) * sizeof(float));
        }
}

void as_panel_by_token(const float* rows, int64_t count, int64_t d, float* to) {
    for (int64_t first = 0; first < count; first += WIDTH, to += WIDTH * d) {
        const int64_t here = std::min(WIDTH, count - first);
        if (here < WIDTH) std::memset(to, 0, size_t(WIDTH * d) * sizeof(float));
        for (int64_t t = 0; t < here; t++)
            for (int64_t i = 0; i < d; i++) to[i * WIDTH + t] = rows[(first + t) * d + i];
    }
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
    const int64_t start = w.starts[segment], n = w.counts[segment], width = whole(n), wide = whole(d);
    float* rows = head.rows.of(n * d);
    as_rows(w.k.at + start * w.k.stride + kv * d, w.k.stride, n, d, rows);
    as_panel_by_token(rows, n, d, head.keys_by_token.of(width * d));
    as_rows(w.v.at + start * w.v.stride + kv * d, w.v.stride, n, d, rows);
    as_panel(rows, n, d, head.values.of(n * wide));
    float* shares = head.shares.of(BLOCK * width);
    float* result = head.result.of(BLOCK * wide);
    const float scale = 1.0f / std::sqrt(float(d));
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        as_rows(w.q.at + start * w.q.stride + h * d, w.q.stride, n, d, rows);
        for (int64_t first = 0; first < n; first += BLOCK) {
            const int64_t block = std::min<int64_t>(BLOCK, n - first), reach = w.causal ? first + block : n;
            multiply(rows + first * d, d, 1, block, d, head.keys_by_token.first, WIDTH * d, reach, shares, width);
            for (int64_t r = 0; r < block; r++) {
                const int64_t query = first + r, count = w.causal ? query + 1 : n, end = whole(reach);
                float* logits = shares + r * width;
                finish_logits(logits, count, end, scale, biases(w, h, query));
                Vec high = all(-INFINITY);
                for (int64_t j = 0; j < end; j += LANES) high = most(load(logits + j), high);
                const float highest = most(high);
                Vec total = all(0);
                for (int64_t j = 0; j < end; j += LANES) {
                    const Vec share = exponential(load(logits + j) - highest);
                    store(logits + j, share);
                    total += share;
                }
                const float all_of_it = sum(total);
                w.sums[(start + query) * w.heads + h] = highest + std::log(all_of_it);
                for (int64_t j = 0; j < end; j += LANES) store(logits + j, load(logits + j) * (1.0f / all_of_it));
            }
            multiply(shares, width, 1, block, reach, head.values.first, n * WIDTH, d, result, wide);
            write(result, wide, block, d, 1.0f, w.y + ((start + first) * w.heads + h) * d, w.heads * d);
        }
    }
}

template <class Kind>
void backward(const Task<Kind>& w, int64_t index) {
    static thread_local Head head;
    const int64_t segment = index / w.kv_heads, kv = index % w.kv_heads, group = w.heads / w.kv_heads, d = w.d;
    const int64_t start = w.starts[segment], n = w.counts[segment], width = whole(n), wide = whole(d);
    float *rows = head.rows.of(n * d), *row_gradients = head.row_gradients.of(n * d);
    as_rows(w.k.at + start * w.k.stride + kv * d, w.k.stride, n, d, rows);
    as_panel(rows, n, d, head.keys.of(n * wide));
    as_panel_by_token(rows, n, d, head.keys_by_token.of(width * d));
    as_rows(w.v.at + start * w.v.stride + kv * d, w.v.stride, n, d, rows);
    as_panel_by_token(rows, n, d, head.values_by_token.of(width * d));
    float *shares = head.shares.of(n * width), *slopes = head.slopes.of(n * width);
    float *of_keys = head.key_gradients.of(n * wide), *of_values = head.value_gradients.of(n * wide);
    float* result = head.result.of(BLOCK * wide);
    const float scale = 1.0f / std::sqrt(float(d));
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        const bool add = h > kv * group;
        as_rows(w.q.at + start * w.q.stride + h * d, w.q.stride, n, d, rows);
        as_rows(w.dy + (start * w.heads + h) * d, w.heads * d, n, d, row_gradients);
        as_panel(rows, n, d, head.queries.of(n * wide));
        as_panel(row_gradients, n, d, head.gradients.of(n * wide));
        for (int64_t first = 0; first < n; first += BLOCK) {
            const int64_t block = std::min<int64_t>(BLOCK, n - first), reach = w.causal ? first + block : n;
            float *some_shares = shares + first * width, *some_slopes = slopes + first * width;
            multiply(rows + first * d, d, 1, block, d, head.keys_by_token.first, WIDTH * d, reach, some_shares, width);
            multiply(row_gradients + first * d, d, 1, block, d, head.values_by_token.first, WIDTH * d, reach,
                     some_slopes, width);
            for (int64_t r = 0; r < block; r++) {
                const int64_t query = first + r, count = w.causal ? query + 1 : n, end = whole(reach);
                float *share = some_shares + r * width, *slope = some_slopes + r * width;
                finish_logits(share, count, end, scale, biases(w, h, query));
                for (int64_t j = count; j < end; j++) slope[j] = 0.0f;
                const float log_sum = w.sums[(start + query) * w.heads + h];
                Vec total = all(0);
                for (int64_t j = 0; j < end; j += LANES) {
                    const Vec part = exponential(load(share + j) - log_sum);
                    store(share + j, part);
                    total += part * load(slope + j);
                }
                const float mean = sum(total);
                for (int64_t j = 0; j < end; j += LANES)
                    store(slope + j, load(share + j) * (load(slope + j) - mean));
                if (w.of_distances) {
                    float* to = w.of_distances + (segment * w.heads + h) * (2 * w.longest - 1) + w.longest - 1 - query;
                    for (int64_t j = 0; j < count; j++) to[j] += slope[j];
                }
            }
            multiply(some_slopes, width, 1, block, reach, head.keys.first, n * WIDTH, d, result, wide);
            write(result, wide, block, d, scale, w.dq + ((start + first) * w.heads + h) * d, w.heads * d);
        }
        for (int64_t first = 0; first < n; first += BLOCK) {
            const int64_t block = std::min<int64_t>(BLOCK, n - first), from = w.causal ? first : 0;
            const int64_t at = from * width + first, left = n - from;
            multiply(shares + at, 1, width, block, left, head.gradients.first + from * WIDTH, n * WIDTH, d,
                     of_values + first * wide, wide, add);
            multiply(slopes + at, 1, width, block, left, head.queries.first + from * WIDTH, n * WIDTH, d,
                     of_keys + first * wide, wide, add);
        }
    }
    write(of_keys, wide, n, d, scale, w.dk + (start * w.kv_heads + kv) * d, w.kv_heads * d);
    write(of_values, wide, n, d, 1.0f, w.dv + (start * w.kv_heads + kv) * d, w.kv_heads * d);
}
