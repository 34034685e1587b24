// The kernel of linear.cpp over one set of instructions, whose registers the including namespace defines: LANES
// outputs in one, and at most `most_for` tokens by `wide_for` registers at once, so that all sums of a block stay in
// registers.

#include "rotation_kernel.h"

// Sums [T, PANEL] of the product of T tokens and a panel of 4 bits, W registers of them, from `column` on.
template <int T, int W>
void four_bits(const Tokens& x, int64_t token, const uint8_t* group, int column, Prefetch ahead, float* sums) {
    const int64_t stride = x.blocks * BLOCK, groups = x.blocks * 2;
    const int8_t* a = x.a + token * stride;
    const int32_t* offset = x.offset + token * groups;
    const float* factor = x.scale + token * x.blocks;
    Real total[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) total[t][w] = float_zero();
    for (int64_t g = 0; g < groups; g++, group += BYTES4, a += GROUP, offset++) {
        for (int line = g % 2; line < ahead.lines; line += 2, ahead.at += 64) prefetch(ahead.at);
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
                const Int settled_sum = settled(sum[t][w], s + PANEL, offset[t * groups]);
                total[t][w] = scaled(settled_sum, scale * factor[t * x.blocks + g / 2], total[t][w]);
            }
        }
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) store(sums + t * PANEL + column + w * LANES, total[t][w]);
}

// Adds the integer sums of a block, times the scales of weights and activations, to `total`.
template <int T, int W>
INLINE void add_block(const Int (&sum)[T][W], const Tokens& x, int64_t token, int64_t block, const uint8_t* s,
                      Real (&total)[T][W]) {
    UNROLLED for (int w = 0; w < W; w++) {
        const Real scale = bytes(s + w * LANES);
        UNROLLED for (int t = 0; t < T; t++)
            total[t][w] = scaled(sum[t][w], scale * x.scale[(token + t) * x.blocks + block], total[t][w]);
    }
}

// The same for 8 bits.
template <int T, int W>
void eight_bits(const Tokens& x, int64_t token, const uint8_t* panel, int column, Prefetch ahead, float* sums) {
    const int64_t stride = x.blocks * BLOCK;
    const int8_t* a = x.a + token * stride;
    const uint8_t *at = panel + column * QUAD, *s = panel + x.blocks * block_bytes(8) + column;
    Real total[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) total[t][w] = float_zero();
    // Lines are prefetched with every four inputs, since many prefetches at once would delay each other.
    constexpr int QUADS = BLOCK / QUAD;
    const int each = ahead.lines / QUADS, rest = ahead.lines % QUADS;
    for (int64_t b = 0; b < x.blocks; b++, s += PANEL) {
        Int sum[T][W];
        UNROLLED for (int t = 0; t < T; t++)
            UNROLLED for (int w = 0; w < W; w++)
                sum[t][w] = OFFSET ? constant(-128 * x.total[(token + t) * x.blocks + b]) : zero();
        for (int quad = 0; quad < QUADS; quad++, a += QUAD, at += PANEL * QUAD) {
            for (int line = quad < rest ? -1 : 0; line < each; line++, ahead.at += 64) prefetch(ahead.at);
            Int weights[W];
            UNROLLED for (int w = 0; w < W; w++) weights[w] = load(at + w * LANES * QUAD);
            UNROLLED for (int t = 0; t < T; t++) {
                const Int activations = four(a + t * stride);
                UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot8(sum[t][w], weights[w], activations);
            }
        }
        add_block(sum, x, token, b, s, total);
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) store(sums + t * PANEL + column + w * LANES, total[t][w]);
}

// Bytes shifted to the left; bits that leave a byte are for the caller to clear.
INLINE Int shifted(Int bytes, int by) { return as<Int>(as<Bits>(bytes) << by); }

// The same for 6 bits.
template <int T, int W>
void six_bits(const Tokens& x, int64_t token, const uint8_t* panel, int column, Prefetch ahead, float* sums) {
    const int64_t stride = x.blocks * BLOCK;
    const int8_t* a = x.a + token * stride;
    const uint8_t *block = panel + column * QUAD, *s = panel + x.blocks * block_bytes(6) + column;
    const Int fifteen = constant(0x0f0f0f0f), highest = constant(0x30303030);
    Real total[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) total[t][w] = float_zero();
    for (int64_t b = 0; b < x.blocks; b++, block += block_bytes(6), s += PANEL) {
        Int sum[T][W];
        UNROLLED for (int t = 0; t < T; t++)
            UNROLLED for (int w = 0; w < W; w++) sum[t][w] = constant(-32 * x.total[(token + t) * x.blocks + b]);
        for (int half = 0; half < 2; half++, a += GROUP) {
            const uint8_t *nibbles = block + half * NIBBLES, *twos = block + 2 * NIBBLES + half * NIBBLES / 2;
            Int lows[W], highs[W];  // the high bits of the inputs of low and high nibbles
            UNROLLED for (int w = 0; w < W; w++) {
                lows[w] = load(twos + w * LANES * QUAD);
                highs[w] = load(twos + (PANEL + w * LANES) * QUAD);
            }
            UNROLLED for (int j = 0; j < 4; j++) {
                for (int line = 4 * half + j; line < ahead.lines; line += 8, ahead.at += 64) prefetch(ahead.at);
                Int first[W], second[W];
                UNROLLED for (int w = 0; w < W; w++) {
                    const Int pairs = load(nibbles + (j * PANEL + w * LANES) * QUAD);
                    const Int of_low = j < 2 ? shifted(lows[w], 4 - 2 * j) : lows[w] >> (2 * j - 4);
                    const Int of_high = j < 2 ? shifted(highs[w], 4 - 2 * j) : highs[w] >> (2 * j - 4);
                    first[w] = (pairs & fifteen) | (of_low & highest);
                    second[w] = (pairs >> 4 & fifteen) | (of_high & highest);
                }
                UNROLLED for (int t = 0; t < T; t++) {
                    const int8_t* at = a + t * stride + j * QUAD;
                    const Int early = four(at), late = four(at + GROUP / 2);
                    UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot6(sum[t][w], first[w], early);
                    UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot6(sum[t][w], second[w], late);
                }
            }
        }
        add_block(sum, x, token, b, s, total);
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) store(sums + t * PANEL + column + w * LANES, total[t][w]);
}

#ifdef MATRIX
// Eight bits by matrix instructions, for two tokens at a time; of an odd number of tokens the last is multiplied twice.
template <int T, int W>
void eight_bits_matrix(const Tokens& x, int64_t token, const uint8_t* panel, int column, Prefetch ahead, float* sums) {
    constexpr int PAIRS = (T + 1) / 2, STEP = 2 * QUAD;
    const int64_t stride = x.blocks * BLOCK;
    const int8_t* a = x.a + token * stride;
    const uint8_t *at = panel + column * QUAD, *s = panel + x.blocks * block_bytes(8) + column;
    Real total[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) total[t][w] = float_zero();
    const int each = ahead.lines / (BLOCK / STEP), rest = ahead.lines % (BLOCK / STEP);
    for (int64_t b = 0; b < x.blocks; b++, s += PANEL) {
        Int sum[PAIRS][W][2];
        UNROLLED for (int p = 0; p < PAIRS; p++)
            UNROLLED for (int w = 0; w < W; w++) sum[p][w][0] = sum[p][w][1] = zero();
        for (int line = 0; line < rest; line++, ahead.at += 64) prefetch(ahead.at);
        for (int i = 0; i < BLOCK; i += STEP, a += STEP, at += PANEL * STEP) {
            for (int line = 0; line < each; line++, ahead.at += 64) prefetch(ahead.at);
            Int activations[PAIRS];
            UNROLLED for (int p = 0; p < PAIRS; p++)
                activations[p] = eight(a + 2 * p * stride, a + std::min(2 * p + 1, T - 1) * stride);
            UNROLLED for (int w = 0; w < W; w++) {
                const Int inputs = load(at + w * LANES * QUAD), next = load(at + (PANEL + w * LANES) * QUAD);
                const Int first = outputs(inputs, next, 0), second = outputs(inputs, next, 1);
                UNROLLED for (int p = 0; p < PAIRS; p++) {
                    sum[p][w][0] = matrix8(sum[p][w][0], first, activations[p]);
                    sum[p][w][1] = matrix8(sum[p][w][1], second, activations[p]);
                }
            }
        }
        Int all[T][W];
        UNROLLED for (int t = 0; t < T; t++)
            UNROLLED for (int w = 0; w < W; w++)
                all[t][w] = of_token(sum[t / 2][w][0], sum[t / 2][w][1], t % 2) +
                            constant(-128 * x.total[(token + t) * x.blocks + b]);
        add_block(all, x, token, b, s, total);
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) store(sums + t * PANEL + column + w * LANES, total[t][w]);
}

template <int T, int W>
constexpr auto eight_bits_run = T == 1 ? eight_bits<T, W> : eight_bits_matrix<T, W>;
#else
template <int T, int W>
constexpr auto eight_bits_run = eight_bits<T, W>;
#endif

#ifdef TILES

// Most tokens that are processed at once.
constexpr int AT_ONCE = 2 * TILE;

// While it exists, this thread's tiles have 16 rows of 64 bytes.
struct Tiles {
    const bool used;

    explicit Tiles(bool used) : used(used) {
        static const struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
        } shape;
        if (used) _tile_loadconfig(&shape);
    }
    ~Tiles() {
        if (used) _tile_release();
    }
};

// The same for 8 bits, at most AT_ONCE tokens and all outputs of a panel, by AMX: two tiles of tokens by two of
// outputs. Rows past the last token are multiplied too, and not used.
void eight_bits_tiles(const Tokens& x, int64_t token, int tokens, const uint8_t* panel, Prefetch ahead, float* sums) {
    const int64_t stride = x.blocks * BLOCK;
    const int8_t *a = x.a + token * stride, *more = a + TILE * stride;
    const uint8_t* s = panel + x.blocks * block_bytes(8);
    const bool both = tokens > TILE;
    std::memset(sums, 0, size_t(tokens) * PANEL * sizeof(float));
    for (int64_t b = 0; b < x.blocks; b++, a += BLOCK, more += BLOCK, panel += block_bytes(8), s += PANEL) {
        for (int line = 0; line < ahead.lines; line++, ahead.at += 64) prefetch(ahead.at);
        _tile_zero(0);
        _tile_zero(1);
        _tile_loadd(4, a, stride);
        _tile_loadd(6, panel, PANEL * QUAD);
        _tile_loadd(7, panel + TILE * QUAD, PANEL * QUAD);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        int32_t all[AT_ONCE][PANEL];
        if (both) {
            _tile_zero(2);
            _tile_zero(3);
            _tile_loadd(5, more, stride);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
            _tile_stored(2, all[TILE], sizeof all[0]);
            _tile_stored(3, all[TILE] + TILE, sizeof all[0]);
        }
        _tile_stored(0, all, sizeof all[0]);
        _tile_stored(1, all[0] + TILE, sizeof all[0]);
        const Real scales[] = {bytes(s), bytes(s + LANES)};
        for (int t = 0; t < tokens; t++) {
            const int64_t at = (token + t) * x.blocks + b;
            const Int correction = constant(-128 * x.total[at]);
            for (int w = 0; w < PANEL / LANES; w++) {
                const Int sum = plus(load(reinterpret_cast<const uint8_t*>(all[t] + w * LANES)), correction);
                float* to = sums + t * PANEL + w * LANES;
                store(to, scaled(sum, scales[w] * x.scale[at], loaded(to)));
            }
        }
    }
}

#elif defined(WORDS)

// Tokens and registers of outputs whose sums of products in 16 bits stay in registers.
constexpr int TOKENS_WORDS = 6, WIDE_WORDS = 2;
// Most tokens that are processed at once.
constexpr int AT_ONCE = std::max({most_for(4), most_for(6), most_for(8), TOKENS_WORDS});

// The same for int8 unpacked to int16: [WIDE_WORDS registers of outputs, pair of inputs, output, 2].
template <int T>
void sixteen_bits(const Tokens& x, int64_t token, const uint8_t* panel, int column, Prefetch ahead, float* sums) {
    constexpr int W = WIDE_WORDS;
    const int64_t stride = x.blocks * BLOCK;
    const int16_t* a = x.words + token * stride;
    const uint8_t *at = panel + column * stride * 2, *s = panel + x.blocks * block_bytes(16) + column;
    Real total[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) total[t][w] = float_zero();
    for (int64_t b = 0; b < x.blocks; b++, s += PANEL) {
        for (int line = 0; line < ahead.lines; line++, ahead.at += 64) prefetch(ahead.at);
        Int sum[T][W];
        UNROLLED for (int t = 0; t < T; t++)
            UNROLLED for (int w = 0; w < W; w++) sum[t][w] = zero();
        for (int i = 0; i < BLOCK; i += 2, a += 2, at += W * LANES * QUAD) {
            Int weights[W];
            UNROLLED for (int w = 0; w < W; w++) weights[w] = load(at + w * LANES * QUAD);
            UNROLLED for (int t = 0; t < T; t++) {
                const Int activations = four(reinterpret_cast<const int8_t*>(a + t * stride));
                UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot16(sum[t][w], weights[w], activations);
            }
        }
        add_block(sum, x, token, b, s, total);
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) store(sums + t * PANEL + column + w * LANES, total[t][w]);
}

// Unpacks a panel of 8 bits to the layout of `sixteen_bits`.
void widen_words(const uint8_t* eight, int64_t blocks, uint8_t* sixteen) {
    constexpr int W = WIDE_WORDS, STEP = W * LANES * QUAD;  // bytes of a pair of inputs
    uint8_t* to = sixteen;
    for (int column = 0; column < PANEL; column += W * LANES)
        for (int64_t quad = 0; quad < blocks * BLOCK / QUAD; quad++)
            for (int w = 0; w < W; w++, to += LANES * QUAD) {
                Int first, second;
                words(load(eight + (quad * PANEL + column + w * LANES) * QUAD), first, second);
                std::memcpy(to, &first, sizeof first);
                std::memcpy(to + STEP, &second, sizeof second);
                if (w == W - 1) to += STEP;
            }
    std::memcpy(to, eight + blocks * block_bytes(8), size_t(blocks * PANEL));
}

#else

constexpr int AT_ONCE = std::max({most_for(4), most_for(6), most_for(8)});

#endif

struct Columns {
    void (*run)(const Tokens&, int64_t, const uint8_t*, int, Prefetch, float*);
    int width;  // outputs
};

template <int... T>
const Columns& four_columns(int tokens, std::integer_sequence<int, T...>) {
    static constexpr Columns all[] = {{four_bits<T + 1, wide_for(T + 1, 4)>, wide_for(T + 1, 4) * LANES}...};
    return all[tokens - 1];
}

template <int... T>
const Columns& eight_columns(int tokens, std::integer_sequence<int, T...>) {
    static constexpr Columns all[] = {{eight_bits_run<T + 1, wide_for(T + 1, 8)>, wide_for(T + 1, 8) * LANES}...};
    return all[tokens - 1];
}

template <int... T>
const Columns& six_columns(int tokens, std::integer_sequence<int, T...>) {
    static constexpr Columns all[] = {{six_bits<T + 1, wide_for(T + 1, 6)>, wide_for(T + 1, 6) * LANES}...};
    return all[tokens - 1];
}

const Columns& columns(int bits, int tokens) {
    switch (bits) {
        case 4: return four_columns(tokens, std::make_integer_sequence<int, most_for(4)>());
        case 6: return six_columns(tokens, std::make_integer_sequence<int, most_for(6)>());
        default: return eight_columns(tokens, std::make_integer_sequence<int, most_for(8)>());
    }
}

#ifdef WORDS

template <int... T>
Columns words_columns(int tokens, std::integer_sequence<int, T...>) {
    static constexpr Columns all[] = {{sixteen_bits<T + 1>, WIDE_WORDS * LANES}...};
    return all[tokens - 1];
}

#endif

// Sums [tokens, PANEL] of a factor's panel, for at most AT_ONCE tokens.
void sum(const Factor& by, Place panel, int64_t token, int tokens, Prefetch ahead, float* sums) {
#ifdef TILES
    if (by.bits == 8 && by.x.tiles) return eight_bits_tiles(by.x, token, tokens, by.at(panel), ahead, sums);
#endif
#ifdef WORDS
    if (by.bits == 16) {
        const Columns chosen = words_columns(tokens, std::make_integer_sequence<int, TOKENS_WORDS>());
        for (int column = 0; column < PANEL; column += chosen.width, ahead.lines = 0)
            chosen.run(by.x, token, by.at(panel), column, ahead, sums);
        return;
    }
#endif
    for (int t = 0, most = most_for(by.bits); t < tokens; t += most) {
        const Columns& chosen = columns(by.bits, std::min(most, tokens - t));
        for (int column = 0; column < PANEL; column += chosen.width, ahead.lines = 0)
            chosen.run(by.x, token + t, by.at(panel), column, ahead, sums + t * PANEL);
    }
}

// A token's sums of a panel, and of an adapter's if there is one, with their factors.
struct Sums {
    const float *base, *row, *adapted, *adapter_row;
    float scale, adapter_scale;

    Sums(const Work& work, Place panel, const float* base, const float* adapted)
        : base(base), row(work.base.row_at(panel)), adapted(adapted),
          adapter_row(work.adapter ? work.adapter->row_at(panel) : nullptr), scale(work.base.unit),
          adapter_scale(work.adapter ? work.adapter->unit : 0) {}

    // One result, or a vector of them.
    template <class V>
    INLINE V result(int output) const {
        V value = read<V>(base + output) * (read<V>(row + output) * scale);
        if (adapter_row) value += read<V>(adapted + output) * (read<V>(adapter_row + output) * adapter_scale);
        return value;
    }
};

// Stores the sums [parts, AT_ONCE, PANEL] of panels in the results. Products are rounded before they are gated or
// added, as a separate product would be.
template <typename To>
void finish(const Work& work, int64_t panel, int64_t token, int tokens, const float* base, const float* adapted) {
    const Place first{panel, 0}, second{panel, 1};
    const int there = int(std::min<int64_t>(PANEL, work.width() - panel * PANEL));
    for (int t = 0; t < tokens; t++, token++, base += PANEL, adapted += PANEL) {
        const Sums own(work, first, base, adapted);
        To* to = static_cast<To*>(work.y) + token * work.width() + panel * PANEL;
        const To* onto = work.onto ? static_cast<const To*>(work.onto) + (to - static_cast<To*>(work.y)) : nullptr;
        int o = 0;
        if (work.parts == 2) {
            const Sums up(work, second, base + AT_ONCE * PANEL, adapted + AT_ONCE * PANEL);
            for (; o < there; o += LANES)
                store(to + o, gated(kept(to, own.result<Vec>(o)), kept(to, up.result<Vec>(o))));
        } else if (onto) {
            for (; o + LANES <= there; o += LANES) store(to + o, kept(to, own.result<Vec>(o)) + load(onto + o));
            for (; o < there; o++) {
                put(to + o, own.result<float>(o));
                put(to + o, one(to[o]) + one(onto[o]));
            }
        } else {
            for (; o + LANES <= there; o += LANES) store(to + o, own.result<Vec>(o));
            for (; o < there; o++) put(to + o, own.result<float>(o));
        }
    }
}

// The products of panels `begin` to `end` and a share of the tokens; then of the next share, while they are in the
// cache.
void multiply(const Work& work, int64_t begin, int64_t end) {
    const Factor *base = &work.base, *adapter = work.adapter;
    const int most = base->bits == 16 || (base->bits == 8 && base->x.tiles) ? AT_ONCE : most_for(base->bits);
    const auto finished = work.bf16 ? finish<uint16_t> : finish<float>;
    for (int64_t first = 0; first < base->x.m; first += work.share) {
        const int64_t last = std::min(base->x.m, first + work.share), blocks = up(last - first, most);
        for (int64_t panel = begin; panel < end; panel++) {
            int64_t token = first;
            for (int64_t block = 0; block < blocks; block++) {
                const int tokens = int(up(last - token, blocks - block));
                float sums[2 * AT_ONCE * PANEL], adapted[2 * AT_ONCE * PANEL];
                for (int t = 0; t < tokens; t++) prefetch(work.at(token + t, panel));  // prefetched during the product
                for (int part = 0; part < work.parts; part++) {
                    const Place place{panel, part};
                    const int64_t at = part * AT_ONCE * PANEL;
                    sum(*base, place, token, tokens, base->ahead(place, block, blocks), sums + at);
                    if (adapter)
                        sum(*adapter, place, token, tokens, adapter->ahead(place, block, blocks), adapted + at);
                }
                finished(work, panel, token, tokens, sums, adapted);
                token += tokens;
            }
        }
    }
}

#ifndef WORDS

typedef uint16_t Shorts __attribute__((vector_size(LANES * 4)));

INLINE Vec as_vector(const uint8_t* numbers) { return as<Vec>(bytes(numbers)); }

// Unpacks a panel of 4 bits to int8, with the scales of its outputs: the largest possible value of a block becomes 127
// or a little less.
void widen(const uint8_t* four, int64_t blocks, const float* row, int outputs, uint8_t* eight, float* eight_row) {
    constexpr int VECTORS = PANEL / LANES;
    // The largest value of a block in 16ths of the row's unit.
    const auto most_of = [&](int64_t block, int v) {
        Vec largest = Vec{};
        for (int g = 0; g < 2; g++) {
            const uint8_t* s = four + (2 * block + g) * BYTES4 + NIBBLES + v * LANES;
            const Vec z = as_vector(s + PANEL);
            largest = most(largest, as_vector(s) * most(z, all(240) - z));
        }
        return largest;
    };
    Vec largest[VECTORS] = {}, unit[VECTORS];
    for (int64_t b = 0; b < blocks; b++)
        for (int v = 0; v < VECTORS; v++) largest[v] = most(largest[v], most_of(b, v));
    for (int v = 0; v < VECTORS; v++) unit[v] = most(largest[v], all(1)) / 255.0f;
    float units[PANEL];
    std::memcpy(units, unit, sizeof units);
    for (int o = 0; o < outputs; o++) eight_row[o] = row[o] * units[o] / (127.0f * 16);
    uint8_t* scales = eight + blocks * block_bytes(8);
    for (int64_t b = 0; b < blocks; b++, eight += block_bytes(8), scales += PANEL)
        for (int v = 0; v < VECTORS; v++) {
            // The smallest scale of 1 to 255 units that holds the block.
            const Ints steps_up = __builtin_convertvector(most_of(b, v) / unit[v] * 0.999999f, Ints) + 1;
            const Vec scale = __builtin_convertvector(steps_up, Vec), factor = 127.0f * 256 / (scale * unit[v]);
            int32_t numbers[LANES];
            std::memcpy(numbers, &steps_up, sizeof numbers);
            for (int i = 0; i < LANES; i++) scales[v * LANES + i] = uint8_t(numbers[i]);
            for (int g = 0; g < 2; g++) {
                // In 256ths: the step of a nibble, and the value of nibble 0 plus one half for rounding and 128.
                const uint8_t *group = four + (2 * b + g) * BYTES4, *at = group + NIBBLES + v * LANES;
                const Vec s = as_vector(at) * factor, none = 128.5f * 256 - as_vector(at + PANEL) * s;
                const Ints step = __builtin_convertvector(16.0f * s + 0.5f, Ints);
                const Ints zero = __builtin_convertvector(none, Ints);
                const Shorts steps = as<Shorts>(step | step << 16), zeros = as<Shorts>(zero | zero << 16);
                for (int j = 0; j < 4; j++) {
                    const int place = (j * PANEL + v * LANES) * QUAD;
                    const Shorts pairs = read<Shorts>(group + place);
                    for (int half = 0; half < 2; half++) {
                        const Shorts even = (pairs >> 4 * half & 15) * steps + zeros;
                        const Shorts odd = (pairs >> (8 + 4 * half) & 15) * steps + zeros;
                        const Shorts both = even >> 8 | (odd & 0xff00);
                        std::memcpy(eight + g * GROUP * PANEL + half * 4 * PANEL * QUAD + place, &both, sizeof both);
                    }
                }
            }
        }
}

#endif

// The products of panels `begin` to `end` and all tokens. For many tokens weights are unpacked first, some panels at a
// time: 4 bits to 8, or 8 bits to 16.
void products(const Work& work, int64_t begin, int64_t end) {
    const Factor& base = work.base;
#ifdef TILES
    const Tiles tiles(base.x.tiles || (work.adapter && work.adapter->x.tiles));
#endif
    const bool to_words = base.bits == 8 && base.x.words;
    const bool to_bytes = OFFSET && base.bits == 4 && base.x.m >= UNPACK_MIN_TOKENS;
    if (!to_words && !to_bytes) return multiply(work, begin, end);
    const int64_t bytes = panel_bytes(to_words ? 16 : 8, base.x.blocks);
    const int64_t some = std::max<int64_t>(1, NEAR / (bytes * work.parts));
    static thread_local std::vector<uint8_t> wide;
    wide.resize(size_t(work.parts * some * bytes));
    std::vector<float> row(size_t(work.parts * some * PANEL));
    Work widened = work;
    if (to_words) widened.share = share_of(base.x.m, TOKENS / 2);
    for (int64_t first = begin; first < end; first += some) {
        const int64_t last = std::min(end, first + some);
        widened.base = {base.x, 8, wide.data(), row.data(), base.unit * 16, first, some, &base};
        if (to_words) widened.base = {base.x, 16, wide.data(), row.data(), base.unit, first, some, &base};
        for (int64_t panel = first; panel < last; panel++)
            for (int part = 0; part < work.parts; part++) {
                const Place place{panel, part};
                const int64_t to = widened.base.index(place);
                const int outputs = int(std::min<int64_t>(PANEL, work.width() - panel * PANEL));
#ifdef WORDS
                std::memcpy(row.data() + to * PANEL, base.row_at(place), size_t(outputs) * sizeof(float));
                widen_words(base.at(place), base.x.blocks, wide.data() + to * bytes);
#else
                widen(base.at(place), base.x.blocks, base.row_at(place), outputs, wide.data() + to * bytes,
                      row.data() + to * PANEL);
#endif
            }
        multiply(widened, first, last);
    }
}

// Quantizes one token's k activations to int8, rotated or not: in each block the largest magnitude becomes 127. A block
// with an infinite or NaN activation gets the scale NaN. Writes `offset` if it isn't null.
template <typename From>
void quantize_token(const From* x, int64_t k, int64_t blocks, bool rotated, int8_t* a, float* scale, int32_t* offset,
                    int32_t* total) {
    constexpr int VECTORS = BLOCK / LANES;
    for (int64_t b = 0; b < blocks; b++, a += BLOCK) {
        const From* from = x + b * BLOCK;
        From rest[BLOCK] = {};  // the last block, if it is incomplete
        if (k < (b + 1) * BLOCK) {
            std::memcpy(rest, from, size_t(k - b * BLOCK) * sizeof(From));
            from = rest;
        }
        Vec block[VECTORS];
        for (int v = 0; v < VECTORS; v++) block[v] = load(from + v * LANES);
        if (rotated) rotate(block);
        Ints most = {};
        for (int v = 0; v < VECTORS; v++) {
            const Ints size = as<Ints>(block[v]) & 0x7fffffff;
            most = size > most ? size : most;
        }
        int32_t sizes[LANES];
        std::memcpy(sizes, &most, sizeof sizes);
        const int32_t largest = *std::max_element(sizes, sizes + LANES);
        const bool finite = largest < 0x7f800000;
        const float step = std::max(as<float>(largest) / 127.0f, 1e-30f), inverse = finite ? 1.0f / step : 0.0f;
        scale[b] = finite ? (rotated ? step / 8 : step) : NAN;
        // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
        for (int v = 0; v < VECTORS; v++) {
            const Bytes bytes = narrowed(as<Ints>(block[v] * inverse + 12582912.0f));
            std::memcpy(a + v * LANES, &bytes, sizeof bytes);
        }
        if (!finite) std::memset(a, 0, BLOCK);
        int32_t sums[BLOCK / GROUP] = {};
        for (int g = 0; g < BLOCK / GROUP; g++)
            for (int i = 0; i < GROUP; i++) sums[g] += a[g * GROUP + i];
        total[b] = sums[0] + sums[1];
        if (offset)
            for (int g = 0; g < BLOCK / GROUP; g++) *offset++ = int32_t(uint16_t(-sums[g]));
    }
}

// Tokens `begin` to `end` of x [m k], float32 or bfloat16, in the form of `Tokens`.
void quantize(const void* x, bool bf16, bool rotated, int64_t begin, int64_t end, int64_t k, int8_t* a, float* scale,
              int32_t* offset, int32_t* total) {
    const int64_t blocks = up(k, BLOCK);
    const auto run = [&](const auto* from) {
        for (int64_t t = begin; t < end; t++)
            quantize_token(from + t * k, k, blocks, rotated, a + t * blocks * BLOCK, scale + t * blocks,
                           offset ? offset + t * blocks * 2 : nullptr, total + t * blocks);
    };
    if (bf16)
        run(static_cast<const uint16_t*>(x));
    else
        run(static_cast<const float*>(x));
}
