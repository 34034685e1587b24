// The float32 kernel of encoder_attention.cpp over one set of instructions.

// Queries and vectors of keys or channels whose sums stay in registers: 12 vectors of 16, or 24 of 32.
constexpr int BLOCK = LANES == 16 ? 12 : LANES == 1 ? 2 : 6, VECTORS = LANES >= 8 ? 2 : 4;
constexpr int64_t WIDTH = VECTORS * LANES;  // keys or channels of a block

// A head's keys [block, channel, WIDTH keys] and values [block of WIDTH channels, key, WIDTH], a block of queries, and
// their scores.
struct Head {
    Room<float> keys, values, rows, scores;
};

INLINE int64_t whole(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// Channels `from` to `from + d` of a row.
INLINE void copy_row(const Raw& raw, int64_t row, int64_t from, int64_t d, float* to) {
    const uint16_t* at = raw.at + row * raw.stride + from;
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) store(to + i, load(at + i));
    for (; i < d; i++) to[i] = one(at[i]);
    if (raw.scale)
        for (i = 0; i < d; i++) to[i] *= raw.scale[row];
    if (raw.bias)
        for (i = 0; i < d; i++) to[i] += raw.bias[from + i];
}

void pack_head(const Attention& w, Head& head, int64_t start, int64_t count, int64_t from) {
    float* keys = head.keys.of(whole(count) * w.d);
    float* values = head.values.of(count * whole(w.d));
    float* row = head.rows.of(std::max<int64_t>(BLOCK, 2) * w.d);
    std::memset(keys, 0, size_t(whole(count) * w.d) * sizeof(float));
    std::memset(values, 0, size_t(count * whole(w.d)) * sizeof(float));
    for (int64_t j = 0; j < count; j++) {
        copy_row(w.k, start + j, from, w.d, row);
        float* to = keys + j / WIDTH * WIDTH * w.d + j % WIDTH;
        for (int64_t i = 0; i < w.d; i++) to[i * WIDTH] = row[i];
        copy_row(w.v, start + j, from, w.d, row);
        for (int64_t i = 0; i < w.d; i += WIDTH)
            std::memcpy(values + i * count + j * WIDTH, row + i, size_t(std::min(WIDTH, w.d - i)) * sizeof(float));
    }
}

// Logits of Q queries and all keys, `width` apart.
template <int Q>
void score(const Head& head, int64_t d, int64_t width) {
    const float* at = head.keys.first;
    for (int64_t b = 0; b < width; b += WIDTH) {
        Vec total[Q][VECTORS] = {};
        for (int64_t i = 0; i < d; i++, at += WIDTH) {
            Vec keys[VECTORS];
            UNROLLED for (int v = 0; v < VECTORS; v++) keys[v] = load(at + v * LANES);
            UNROLLED for (int q = 0; q < Q; q++) {
                const Vec query = all(head.rows.first[q * d + i]);
                UNROLLED for (int v = 0; v < VECTORS; v++) total[q][v] = fused(query, keys[v], total[q][v]);
            }
        }
        UNROLLED for (int q = 0; q < Q; q++)
            UNROLLED for (int v = 0; v < VECTORS; v++)
                store(head.scores.first + q * width + b + v * LANES, total[q][v]);
    }
}

// Exponentials of one query's logits; returns their sum. `distances` begins with that of its first key.
float softmax(float* scores, int64_t count, int64_t width, float scale, const float* distances) {
    Vec most_of = all(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Vec value = load(scores + i) * scale;
        if (distances) value += load(distances + i);
        store(scores + i, value);
        most_of = most(value, most_of);
    }
    float high = most(most_of);
    for (; i < count; i++) {
        scores[i] = scores[i] * scale + (distances ? distances[i] : 0);
        high = std::max(high, scores[i]);
    }
    for (; i < width; i++) scores[i] = -INFINITY;
    Vec total = all(0);
    for (i = 0; i < width; i += LANES) {
        const Vec share = exponential(load(scores + i) - high);
        store(scores + i, share);
        total += share;
    }
    return sum(total);
}

// Sums of V vectors of a block of channels weighted for Q queries.
template <int Q, int V>
void mix(const float* values, int64_t count, const float* shares, int64_t width, const float* sums, int64_t channels,
         uint16_t* y, int64_t stride) {
    Vec total[Q][V] = {};
    for (int64_t j = 0; j < count; j++, values += WIDTH) {
        Vec of[V];
        UNROLLED for (int v = 0; v < V; v++) of[v] = load(values + v * LANES);
        UNROLLED for (int q = 0; q < Q; q++) {
            const Vec share = all(shares[q * width + j]);
            UNROLLED for (int v = 0; v < V; v++) total[q][v] = fused(share, of[v], total[q][v]);
        }
    }
    UNROLLED for (int q = 0; q < Q; q++)
        UNROLLED for (int v = 0; v < V; v++) {
            const Vec value = total[q][v] / sums[q];
            uint16_t* to = y + q * stride + v * LANES;
            const int64_t there = channels - v * LANES;
            if (there >= LANES) {
                store(to, value);
            } else {
                float lanes[LANES];
                store(lanes, value);
                for (int64_t i = 0; i < there; i++) to[i] = to_bf16(lanes[i]);
            }
        }
}

template <int Q>
void attend_some(const Attention& w, Head& head, int64_t start, int64_t first, int64_t count, int64_t h) {
    const int64_t width = whole(count), stride = w.heads * w.d;
    const float scale = 1.0f / std::sqrt(float(w.d));
    float sums[Q];
    for (int q = 0; q < Q; q++) copy_row(w.q, start + first + q, h * w.d, w.d, head.rows.first + q * w.d);
    score<Q>(head, w.d, width);
    for (int q = 0; q < Q; q++) {
        const float* distances = nullptr;
        if (w.distances) distances = w.distances + h * (2 * w.longest - 1) + w.longest - 1 - (first + q);
        sums[q] = softmax(head.scores.first + q * width, count, width, scale, distances);
    }
    for (int64_t i = 0; i < w.d; i += WIDTH) {
        const float* values = head.values.first + i * count;
        uint16_t* y = w.y + (start + first) * stride + h * w.d + i;
        const auto run = w.d - i > WIDTH / 2 ? mix<Q, VECTORS> : mix<Q, std::max(1, VECTORS / 2)>;
        run(values, count, head.scores.first, width, sums, w.d - i, y, stride);
    }
}

using Some = void (*)(const Attention&, Head&, int64_t, int64_t, int64_t, int64_t);

template <int... Q>
Some some_of(int64_t queries, std::integer_sequence<int, Q...>) {
    static constexpr Some some[] = {attend_some<Q + 1>...};
    return some[queries - 1];
}

// One head of one segment.
void attend(const Attention& w, int64_t index) {
    static thread_local Head head;
    const int64_t segment = index / w.heads, h = index % w.heads;
    const int64_t start = w.starts[segment], count = w.keys[segment], queries = w.queries[segment];
    if (!count) {  // no key to attend to
        for (int64_t t = start; t < start + queries; t++)
            std::memset(w.y + (t * w.heads + h) * w.d, 0, size_t(w.d) * sizeof(uint16_t));
        return;
    }
    pack_head(w, head, start, count, h * w.d);
    head.scores.of(BLOCK * whole(count));
    for (int64_t first = 0; first < queries; first += BLOCK) {
        const int64_t block = std::min<int64_t>(BLOCK, queries - first);
        some_of(block, std::make_integer_sequence<int, BLOCK>())(w, head, start, first, count, h);
    }
}
