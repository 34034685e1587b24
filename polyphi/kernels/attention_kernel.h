// The kernels of attention.cpp over one set of instructions. `Unit` is the element type of one step of a product: a
// float, or a pair of bfloat16 (PAIRS).

// ------------------------------------------------------------------ writing the cache

// Writes a new token's keys or values of one head in the format of the cache.
template <class Kind>
void keep(const Kind* from, int d, Kind* to, float*) {
    std::memcpy(to, from, size_t(d) * sizeof(Kind));
}

template <class Kind>
void keep(const Kind* from, int d, int8_t* to, float* scale) {
    Vec high = all(0);
    for (int i = 0; i < d; i += LANES) {
        const Vec value = load(from + i);
        high = most(high, value < all(0) ? -value : value);
    }
    *scale = std::max(most(high) / 127.0f, 1e-12f);
    const Vec inverse = all(1.0f / *scale);
    for (int i = 0; i < d; i += LANES) {
        const Vec whole = load(from + i) * inverse + 12582912.0f;  // 1.5 * 2^23 rounds to the low bits
        const Bytes bytes = narrowed(as<Ints>(whole));
        std::memcpy(to + i, &bytes, sizeof bytes);
    }
}

// ------------------------------------------------------------------ few queries

// Vectors have a part of a head. Keys and values are read once, block by block.

constexpr int BESIDE = 4;  // keys whose products are in registers at once

// Numbers that `scores_of` multiplies at a time: LANES, or twice as many in pairs.
template <class Held>
INLINE Vec plus_product(Vec total, const float* q, const Held* key) {
    return total + load(q) * load(key);
}
#if PAIRS
INLINE Vec plus_product(Vec total, const uint16_t* q, const uint16_t* key) {
    return _mm512_dpbf16_ps(total, read<__m512bh>(q), read<__m512bh>(key));
}
#endif

// Prefetches memory.
template <int BYTES>
INLINE void prefetch(const void* at) {
    for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(static_cast<const char*>(at) + line);
}

// scores [R, n] of queries [R, d] and the keys of a block, n rounded up to BESIDE; `next` is the next block, to
// prefetch
template <int R, class Query, class Held>
void scores_of(const Query* q, const Held* keys, const Held* next, int n, int d, float* scores) {
    constexpr int STEP = sizeof(Query) == 2 ? 2 * LANES : LANES;
    for (int j = 0; j < n; j += BESIDE) {
        Vec total[R][BESIDE];
        for (int r = 0; r < R; r++)
            for (int k = 0; k < BESIDE; k++) total[r][k] = all(0);
        for (int i = 0; i < d; i += STEP) {
            prefetch<BESIDE * STEP * sizeof(Held)>(next + j * d + BESIDE * i);
            for (int k = 0; k < BESIDE; k++)
                for (int r = 0; r < R; r++)
                    total[r][k] = plus_product(total[r][k], q + r * d + i, keys + (j + k) * d + i);
        }
        for (int r = 0; r < R; r++) sums(total[r], scores + r * BLOCK + j);
    }
}

// Adds the product of weights [R, n] and the values of a block to out [R, d], for W vectors of the head; `next` as
// above
template <int R, int W, class Held>
void add_values(const float* weights, const Held* values, const Held* next, int n, int d, float* out) {
    Vec total[R][W];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) total[r][w] = load(out + r * d + w * LANES);
    for (int j = 0; j < n; j++) {
        prefetch<W * LANES * sizeof(Held)>(next + j * d);
        Vec value[W];
        for (int w = 0; w < W; w++) value[w] = load(values + j * d + w * LANES);
        for (int r = 0; r < R; r++) {
            const Vec weight = all(weights[r * BLOCK + j]);
            for (int w = 0; w < W; w++) total[r][w] += weight * value[w];
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) store(out + r * d + w * LANES, total[r][w]);
}

// Keys and values of a block, and of the next one.
template <class Held>
struct Block {
    const Held *keys, *values, *next_keys, *next_values;
    const float *key_scales, *value_scales;
    int n;
};

template <int R, class Query, class Held>
void block_of(const Query* q, const Block<Held>& block, const int64_t* seen, int d, float scale, Softmax* softmax,
              float* out) {
    const auto& [keys, values, next_keys, next_values, key_scales, value_scales, n] = block;
    float scores[R * BLOCK];
    scores_of<R>(q, keys, next_keys, n, d, scores);
    for (int r = 0; r < R; r++) {
        float* mine = scores + r * BLOCK;
        const int there = int(std::max<int64_t>(0, std::min<int64_t>(n, seen[r])));
        for (int j = 0; j < there; j++) mine[j] *= key_scales ? key_scales[j] * scale : scale;
        for (int j = there; j < BLOCK; j++) mine[j] = NEVER;
        Vec high = all(softmax[r].most);
        for (int j = 0; j < BLOCK; j += LANES) high = most(high, load(mine + j));
        const float highest = most(high);
        if (highest > softmax[r].most) {
            const float shrunk = std::exp(softmax[r].most - highest);
            softmax[r].total *= shrunk;
            softmax[r].most = highest;
            for (int i = 0; i < d; i += LANES) store(out + r * d + i, load(out + r * d + i) * shrunk);
        }
        Vec total = all(0);
        for (int j = 0; j < BLOCK; j += LANES) {
            const Vec weight = exponential(load(mine + j) - all(highest));
            total += weight;
            store(mine + j, weight);
        }
        softmax[r].total += sum(total);
        if (value_scales)
            for (int j = 0; j < there; j++) mine[j] *= value_scales[j];
    }
    constexpr int W = 4;
    int i = 0;
    for (; i + W * LANES <= d; i += W * LANES) add_values<R, W>(scores, values + i, next_values + i, n, d, out + i);
    for (; i < d; i += LANES) add_values<R, 1>(scores, values + i, next_values + i, n, d, out + i);
}

// Attention of queries [rows, d] of a head over keys `first` to `last`: out [rows, d] and its divisors.
template <class Query, class Held>
void few(const Call& call, const Piece& piece, const Query* q, int rows, float* out, Softmax* softmax) {
    const int d = call.d;
    const float scale = 1.0f / std::sqrt(float(d));
    std::memset(out, 0, size_t(rows) * d * sizeof(float));
    for (int r = 0; r < rows; r++) softmax[r] = {NEVER, 0};
    for (int64_t key = piece.first; key < piece.last; key += BLOCK) {
        const int64_t row = call.row(piece.sequence, piece.head, key);
        const int64_t after = key + BLOCK < piece.last ? call.row(piece.sequence, piece.head, key + BLOCK) : row;
        const Held *keys = call.keys<Held>(), *values = call.values<Held>();
        const Block<Held> block{keys + row * d, values + row * d, keys + after * d, values + after * d,
                                call.key_scales ? call.key_scales + row : nullptr,
                                call.key_scales ? call.value_scales + row : nullptr,
                                int(std::min<int64_t>(BLOCK, piece.last - key))};
        int64_t seen[FEW];
        for (int r = 0; r < rows; r++) seen[r] = call.seen(piece.sequence, r / call.group()) - key;
        int r = 0;
        const auto take = [&](auto width) {
            constexpr int R = decltype(width)::value;
            block_of<R>(q + r * d, block, seen + r, d, scale, softmax + r, out + r * d);
            r += R;
        };
        while (rows - r >= 3) take(std::integral_constant<int, 3>());
        if (rows - r == 2) take(std::integral_constant<int, 2>());
        if (rows - r == 1) take(std::integral_constant<int, 1>());
    }
}

// ------------------------------------------------------------------ many queries

// Vectors have queries in the product with keys (logits are transposed, so that the softmax runs over the lanes), and
// parts of a head in the product of weights and values; the other factor is broadcast.

#if PAIRS
using Unit = uint32_t;
INLINE Vec step(Vec total, Vec b, Unit a) {
    return _mm512_dpbf16_ps(total, as<__m512bh>(b), as<__m512bh>(_mm512_set1_epi32(int(a))));
}
#else
using Unit = float;
INLINE Vec step(Vec total, Vec b, Unit a) { return total + b * a; }
#endif
constexpr int PER = sizeof(Unit) == 4 && !std::is_same<Unit, float>::value ? 2 : 1;  // numbers in a unit
constexpr int TALL = 6, WIDE = LANES == 16 || LANES == 4 ? 4 : 2;

// out [O, W * LANES] (plus) a b, of a [O, steps] and b [steps, W * LANES]
template <int O, int W>
void tile(float* out, int64_t out_stride, const Unit* a, int64_t outer, int64_t inner, const Unit* b, int64_t b_stride,
          int64_t steps, bool add) {
    Vec total[O][W];
    UNROLLED for (int o = 0; o < O; o++)
        UNROLLED for (int w = 0; w < W; w++) total[o][w] = add ? load(out + o * out_stride + w * LANES) : all(0);
    for (int64_t s = 0; s < steps; s++, a += inner, b += b_stride) {
        Vec column[W];
        UNROLLED for (int w = 0; w < W; w++) column[w] = read<Vec>(b + w * LANES);
        UNROLLED for (int o = 0; o < O; o++)
            UNROLLED for (int w = 0; w < W; w++) total[o][w] = step(total[o][w], column[w], read<Unit>(a + o * outer));
    }
    UNROLLED for (int o = 0; o < O; o++)
        UNROLLED for (int w = 0; w < W; w++) store(out + o * out_stride + w * LANES, total[o][w]);
}

using Tile = void (*)(float*, int64_t, const Unit*, int64_t, int64_t, const Unit*, int64_t, int64_t, bool);

template <int... I>
Tile tile_of(int tall, int wide, std::integer_sequence<int, I...>) {
    static constexpr Tile tiles[] = {tile<I / WIDE + 1, I % WIDE + 1>...};
    return tiles[(tall - 1) * WIDE + wide - 1];
}

// The same for any size: `height` rows, `width` vectors.
void product(float* out, int64_t out_stride, const Unit* a, int64_t outer, int64_t inner, const Unit* b,
             int64_t b_stride, int64_t steps, int height, int width, bool add) {
    for (int w = 0; w < width; w += WIDE)
        for (int o = 0; o < height; o += TALL) {
            const Tile run = tile_of(std::min(TALL, height - o), std::min(WIDE, width - w),
                                     std::make_integer_sequence<int, TALL * WIDE>());
            run(out + o * out_stride + w * LANES, out_stride, a + o * outer, outer, inner, b + w * LANES, b_stride,
                steps, add);
        }
}

// n rows of d numbers as units of two neighbours in a row
template <class Held>
void rows_of(const Held* from, int n, int d, Unit* to) {
    if constexpr (PER == 2 && std::is_same<Held, uint16_t>::value) {
        std::memcpy(to, from, size_t(n * d) * sizeof(Held));
    } else {
        using Number = typename std::conditional<PER == 1, float, uint16_t>::type;
        for (int i = 0; i < n * d; i += LANES) store(reinterpret_cast<Number*>(to) + i, load(from + i));
    }
}

INLINE Bits halves(const uint16_t* at) { return widened(read<Halves>(at)); }
INLINE Bits halves(const int8_t* at) { return as<Bits>(load(at)) >> 16; }  // integers up to 127 are exact

// and of two neighbours in a column, [n / PER, d]; an odd last row is paired with 0
template <class Held>
void columns_of(const Held* from, int n, int d, Unit* to) {
    if constexpr (PER == 1) {
        rows_of(from, n, d, to);
    } else {
        for (int j = 0; j < n; j += 2, to += d)
            for (int i = 0; i < d; i += LANES) {
                const Bits high = j + 1 < n ? halves(from + (j + 1) * d + i) << 16 : Bits{};
                const Bits both = halves(from + j * d + i) | high;
                std::memcpy(to + i, &both, sizeof both);
            }
    }
}

#if PAIRS
// Two vectors in bfloat16, interleaved by lane.
INLINE Bits paired(Vec first, Vec second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const auto halves = as<__m512i>(_mm512_cvtne2ps_pbh(as<__m512>(second), as<__m512>(first)));
    return as<Bits>(_mm512_permutexvar_epi16(order, halves));
}
#endif

struct Space {
    std::vector<Unit> queries, keys, values;
    std::vector<float> scores, out;
};

// Attention of queries of one head, from token `piece.token` on, over all keys that they attend to.
template <class Kind, class Held>
void many(const Call& call, const Piece& piece) {
    static thread_local Space space;
    const int d = call.d, group = call.group(), rows = piece.tokens * group;
    const int vectors = (rows + LANES - 1) / LANES, width = vectors * LANES;
    space.queries.assign(size_t(d / PER) * width, 0);
    space.keys.resize(size_t(KEYS / PER) * d);
    space.values.resize(size_t(KEYS / PER) * d);
    space.scores.resize(size_t(KEYS) * width);
    space.out.assign(size_t(rows) * d, 0);
    Unit *queries = space.queries.data(), *keys = space.keys.data(), *values = space.values.data();
    float *scores = space.scores.data(), *out = space.out.data();

    int32_t seen[ROWS + LANES] = {};
    float highest[ROWS + LANES], total[ROWS + LANES], shrunk[ROWS + LANES];
    for (int r = 0; r < width; r++) {
        seen[r] = int32_t(call.seen(piece.sequence, piece.token + std::min(r, rows - 1) / group));
        highest[r] = NEVER;
        total[r] = 0;
    }
    for (int r = 0; r < rows; r++) {
        const Kind* q = call.query<Kind>(piece.sequence, piece.token + r / group, piece.head * group + r % group);
        for (int i = 0; i < d / PER; i++) {
            if constexpr (PER == 1)
                queries[i * width + r] = one(q[i]);
            else
                std::memcpy(queries + i * width + r, q + 2 * i, 4);
        }
    }
    const float scale = 1.0f / std::sqrt(float(d));
    const int64_t last = seen[rows - 1];
    for (int64_t key = 0; key < last; key += KEYS) {
        const int n = int(std::min<int64_t>(KEYS, last - key));
        float factors[KEYS], key_scales[KEYS], value_scales[KEYS];
        for (int j = 0; j < n; j += BLOCK) {
            const int some = std::min(BLOCK, n - j);
            const int64_t row = call.row(piece.sequence, piece.head, key + j);
            rows_of(call.keys<Held>() + row * d, some, d, keys + j * d / PER);
            columns_of(call.values<Held>() + row * d, some, d, values + j * d / PER);
            if (call.key_scales) {
                std::memcpy(key_scales + j, call.key_scales + row, size_t(some) * 4);
                std::memcpy(value_scales + j, call.value_scales + row, size_t(some) * 4);
            }
        }
        for (int j = 0; j < n; j++) factors[j] = call.key_scales ? key_scales[j] * scale : scale;
        for (int j = 0; j < n; j += TALL) {
            const int some = std::min(TALL, n - j);
            for (int64_t ahead = key + KEYS + j; ahead < std::min(last, key + KEYS + j + some); ahead++) {
                const int64_t row = call.row(piece.sequence, piece.head, ahead);
                for (int i = 0; i < d; i += 64 / int(sizeof(Held))) {
                    prefetch<64>(call.keys<Held>() + row * d + i);
                    prefetch<64>(call.values<Held>() + row * d + i);
                }
            }
            product(scores + j * width, width, keys + j * d / PER, d / PER, 1, queries, width, d / PER, some, vectors,
                    false);
        }
        const bool corner = key + n > seen[0];
        for (int c = 0; c < width; c += LANES) {
            const Ints limit = read<Ints>(seen + c) - int32_t(key);
            const Vec before = load(highest + c);
            Vec high = before;
            for (int j = 0; j < n; j++) {
                float* at = scores + j * width + c;
                Vec score = load(at) * factors[j];
                if (corner) score = limit > j ? score : all(NEVER);
                store(at, score);
                high = most(high, score);
            }
            const Vec less = exponential(before - high);
            Vec sums = load(total + c) * less;
            for (int j = 0; j < n; j += PER) {
                Vec weight = exponential(load(scores + j * width + c) - high);
                sums += weight;
                if (call.key_scales) weight *= value_scales[j];
#if PAIRS
                Vec second = all(0);
                if (j + 1 < n) {
                    second = exponential(load(scores + (j + 1) * width + c) - high);
                    sums += second;
                    if (call.key_scales) second *= value_scales[j + 1];
                }
                const Bits both = paired(weight, second);
                std::memcpy(scores + j / 2 * width + c, &both, sizeof both);
#else
                store(scores + j * width + c, weight);
#endif
            }
            store(highest + c, high);
            store(total + c, sums);
            store(shrunk + c, less);
        }
        for (int r = 0; r < rows; r++)
            if (shrunk[r] != 1)
                for (int i = 0; i < d; i += LANES) store(out + r * d + i, load(out + r * d + i) * shrunk[r]);
        const auto* weights = reinterpret_cast<const Unit*>(scores);
        product(out, d, weights, 1, width, values, d, (n + PER - 1) / PER, rows, d / LANES, true);
    }
    for (int r = 0; r < rows; r++) {
        Kind* to = call.result<Kind>(piece.sequence, piece.token + r / group, piece.head * group + r % group);
        const float share = 1.0f / total[r];
        for (int i = 0; i < d; i += LANES) store(to + i, load(out + r * d + i) * share);
    }
}

// ------------------------------------------------------------------ a piece of work

// A piece of few queries; `out` is divided already if the piece has all of their keys.
template <class Kind, class Held>
void few_queries(const Call& call, const Piece& piece) {
    // Pairs of bfloat16 are multiplied directly, 2 * LANES at a time; other types as floats.
    constexpr bool pairs = PAIRS && std::is_same<Held, uint16_t>::value;
    static thread_local std::vector<float> space;
    const int d = call.d, group = call.group(), rows = piece.tokens * group;
    space.resize(size_t(2 * rows) * d);
    float *q = space.data(), *out = piece.partial ? piece.partial + 2 * rows : q + rows * d;
    auto* halves = reinterpret_cast<uint16_t*>(q);
    const bool paired = pairs && d % (2 * LANES) == 0;
    for (int r = 0; r < rows; r++) {
        const Kind* from = call.query<Kind>(piece.sequence, r / group, piece.head * group + r % group);
        if (paired)
            std::memcpy(halves + r * d, from, size_t(d) * sizeof(Kind));
        else
            for (int i = 0; i < d; i += LANES) store(q + r * d + i, load(from + i));
    }
    Softmax softmax[FEW];
    if constexpr (pairs)
        if (paired) few<uint16_t, Held>(call, piece, halves, rows, out, softmax);
    if (!paired) few<float, Held>(call, piece, q, rows, out, softmax);
    if (piece.partial) {
        std::memcpy(piece.partial, softmax, size_t(rows) * sizeof(Softmax));
        return;
    }
    for (int r = 0; r < rows; r++) {
        Kind* to = call.result<Kind>(piece.sequence, r / group, piece.head * group + r % group);
        for (int i = 0; i < d; i += LANES) store(to + i, load(out + r * d + i) * (1.0f / softmax[r].total));
    }
}

// Combines several pieces of the same queries in the first one, weighted by their sums of exponentials.
template <class Kind>
void join_pieces(const Call& call, const Piece* pieces, int count) {
    const int d = call.d, group = call.group(), rows = pieces->tokens * group;
    for (int r = 0; r < rows; r++) {
        const auto softmax = [&](int p) { return read<Softmax>(pieces[p].partial + 2 * r); };
        const auto out = [&](int p) { return pieces[p].partial + (2 * rows + r * d); };
        float highest = NEVER, total = 0;
        for (int p = 0; p < count; p++) highest = std::max(highest, softmax(p).most);
        for (int p = 0; p < count; p++) {
            const float share = std::exp(softmax(p).most - highest);
            total += share * softmax(p).total;
            for (int i = 0; i < d; i += LANES)
                store(out(0) + i, load(out(p) + i) * share + (p ? load(out(0) + i) : all(0)));
        }
        Kind* to = call.result<Kind>(pieces->sequence, r / group, pieces->head * group + r % group);
        for (int i = 0; i < d; i += LANES) store(to + i, load(out(0) + i) * (1.0f / total));
    }
}

// ------------------------------------------------------------------ a whole call

template <class Kind, class Held>
void keep_token(const Call& call, int64_t token) {
    const int sequence = call.sequence(token);
    for (int head = 0; head < call.kv_heads; head++) {
        const int64_t row = call.row(sequence, head, call.place(sequence, token));
        const int64_t at = row * call.d;
        const bool scaled = call.key_scales;
        keep(call.new_key<Kind>(token, head), call.d, call.keys<Held>() + at, scaled ? call.key_scales + row : nullptr);
        keep(call.new_value<Kind>(token, head), call.d, call.values<Held>() + at,
             scaled ? call.value_scales + row : nullptr);
    }
}

template <class Kind, class Held>
void attend(const Call& call, const Pieces& pieces, Parallel parallel, int threads) {
    spread(
        [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; token++) keep_token<Kind, Held>(call, token);
        },
        call.tokens(), 64, parallel, threads);
    spread(
        [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++)
                if (pieces.all[i].few)
                    few_queries<Kind, Held>(call, pieces.all[i]);
                else
                    many<Kind, Held>(call, pieces.all[i]);
        },
        int64_t(pieces.all.size()), 1, parallel, threads);
    for (const auto& [first, count] : pieces.joined) join_pieces<Kind>(call, pieces.all.data() + first, count);
}
