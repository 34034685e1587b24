// The kernel of linear.cpp over one set of instructions, whose registers the including namespace defines: LANES
// outputs in one, and at most `most_for` tokens by `wide_for` registers at once, so that all sums stay in registers.

// Sums [T, PANEL] of the product of T tokens and a panel of 4 bits, W registers of them, from `column` on.
template <int T, int W>
void four_bits(const Tokens& x, int64_t token, const uint8_t* group, int column, Prefetch ahead, float* sums) {
    const int8_t* a = x.a + token * x.groups * GROUP;
    const int32_t* offset = x.offset + token * x.groups;
    const int64_t stride = x.groups * GROUP;
    Real total[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) total[t][w] = float_zero();
    for (int64_t g = 0; g < x.groups; g++, group += BYTES4, a += GROUP, offset++) {
        for (int line = 0; line < ahead.lines; line++, ahead.at += 64) prefetch(ahead.at);
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
                const Int settled_sum = settled(sum[t][w], s + PANEL, offset[t * x.groups]);
                total[t][w] = scaled(settled_sum, scale, total[t][w]);
            }
        }
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) store(sums + t * PANEL + column + w * LANES, total[t][w]);
}

// The same for 8 bits.
template <int T, int W>
void eight_bits(const Tokens& x, int64_t token, const uint8_t* panel, int column, Prefetch ahead, float* sums) {
    const int64_t stride = x.groups * GROUP;
    const int8_t* a = x.a + token * stride;
    const uint8_t* at = panel + column * QUAD;
    Int sum[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) sum[t][w] = zero();
    // Lines are prefetched with every four inputs, since many prefetches at once would delay each other.
    constexpr int64_t QUADS = GROUP / QUAD;
    const int each = ahead.lines / QUADS, rest = ahead.lines % QUADS;
    for (int64_t quad = 0; quad < x.groups * QUADS; quad++, a += QUAD, at += PANEL * QUAD) {
        for (int line = quad % QUADS < rest ? -1 : 0; line < each; line++, ahead.at += 64) prefetch(ahead.at);
        Int weights[W];
        UNROLLED for (int w = 0; w < W; w++) weights[w] = load(at + w * LANES * QUAD);
        UNROLLED for (int t = 0; t < T; t++) {
            const Int activations = four(a + t * stride);
            UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot8(sum[t][w], weights[w], activations);
        }
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) {
            const Int all = OFFSET ? plus(sum[t][w], -128 * x.total[token + t]) : sum[t][w];
            store(sums + t * PANEL + column + w * LANES, real(all));
        }
}

#ifdef MATRIX
// The same by matrix instructions, for two tokens at a time; of an odd number of tokens the last is multiplied twice.
template <int T, int W>
void eight_bits_matrix(const Tokens& x, int64_t token, const uint8_t* panel, int column, Prefetch ahead, float* sums) {
    constexpr int PAIRS = (T + 1) / 2, STEP = 2 * QUAD;
    const int64_t stride = x.groups * GROUP;
    const int8_t* a = x.a + token * stride;
    const uint8_t* at = panel + column * QUAD;
    Int sum[PAIRS][W][2];
    UNROLLED for (int p = 0; p < PAIRS; p++)
        UNROLLED for (int w = 0; w < W; w++) sum[p][w][0] = sum[p][w][1] = zero();
    const int each = ahead.lines / (GROUP / STEP), rest = ahead.lines % (GROUP / STEP);
    for (int64_t g = 0; g < x.groups; g++) {
        for (int line = 0; line < rest; line++, ahead.at += 64) prefetch(ahead.at);
        for (int i = 0; i < GROUP; i += STEP, a += STEP, at += PANEL * STEP) {
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
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) {
            const Int all = plus(of_token(sum[t / 2][w][0], sum[t / 2][w][1], t % 2), -128 * x.total[token + t]);
            store(sums + t * PANEL + column + w * LANES, real(all));
        }
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
    const int64_t stride = x.groups * GROUP;
    const int8_t *a = x.a + token * stride, *more = a + TILE * stride;
    const bool both = tokens > TILE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t g = 0; g < x.groups; g += 2, a += 2 * GROUP, more += 2 * GROUP, panel += 2 * BYTES8) {
        for (int line = 0; line < 2 * ahead.lines; line++, ahead.at += 64) prefetch(ahead.at);
        _tile_loadd(4, a, stride);
        _tile_loadd(6, panel, PANEL * QUAD);
        _tile_loadd(7, panel + TILE * QUAD, PANEL * QUAD);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if (!both) continue;
        _tile_loadd(5, more, stride);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    int32_t all[AT_ONCE][PANEL];
    _tile_stored(0, all, sizeof all[0]);
    _tile_stored(1, all[0] + TILE, sizeof all[0]);
    if (both) {
        _tile_stored(2, all[TILE], sizeof all[0]);
        _tile_stored(3, all[TILE] + TILE, sizeof all[0]);
    }
    for (int t = 0; t < tokens; t++)
        for (int o = 0; o < PANEL; o += LANES) {
            const Int sum = plus(load(reinterpret_cast<const uint8_t*>(all[t] + o)), -128 * x.total[token + t]);
            store(sums + t * PANEL + o, real(sum));
        }
}

#elif defined(WORDS)

// Tokens and registers of outputs whose sums of products in 16 bits stay in registers.
constexpr int TOKENS_WORDS = 6, WIDE_WORDS = 2;
// Most tokens that are processed at once.
constexpr int AT_ONCE = std::max(most_for(8), TOKENS_WORDS);

// The same for int8 unpacked to int16: [WIDE_WORDS registers of outputs, pair of inputs, output, 2].
template <int T>
void sixteen_bits(const Tokens& x, int64_t token, const uint8_t* panel, int column, Prefetch ahead, float* sums) {
    constexpr int W = WIDE_WORDS;
    const int64_t stride = x.groups * GROUP;
    const int16_t* a = x.words + token * stride;
    const uint8_t* at = panel + column * stride * 2;
    Int sum[T][W];
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) sum[t][w] = zero();
    for (int64_t g = 0; g < x.groups; g++) {
        for (int line = 0; line < ahead.lines; line++, ahead.at += 64) prefetch(ahead.at);
        for (int i = 0; i < GROUP; i += 2, a += 2, at += W * LANES * QUAD) {
            Int weights[W];
            UNROLLED for (int w = 0; w < W; w++) weights[w] = load(at + w * LANES * QUAD);
            UNROLLED for (int t = 0; t < T; t++) {
                const Int activations = four(reinterpret_cast<const int8_t*>(a + t * stride));
                UNROLLED for (int w = 0; w < W; w++) sum[t][w] = dot16(sum[t][w], weights[w], activations);
            }
        }
    }
    UNROLLED for (int t = 0; t < T; t++)
        UNROLLED for (int w = 0; w < W; w++) store(sums + t * PANEL + column + w * LANES, real(sum[t][w]));
}

// Unpacks a panel of 8 bits to the layout of `sixteen_bits`.
void widen_words(const uint8_t* eight, int64_t groups, uint8_t* sixteen) {
    constexpr int W = WIDE_WORDS, STEP = W * LANES * QUAD;  // bytes of a pair of inputs
    for (int column = 0; column < PANEL; column += W * LANES)
        for (int64_t quad = 0; quad < groups * GROUP / QUAD; quad++)
            for (int w = 0; w < W; w++, sixteen += LANES * QUAD) {
                Int first, second;
                words(load(eight + (quad * PANEL + column + w * LANES) * QUAD), first, second);
                std::memcpy(sixteen, &first, sizeof first);
                std::memcpy(sixteen + STEP, &second, sizeof second);
                if (w == W - 1) sixteen += STEP;
            }
}

#else

constexpr int AT_ONCE = std::max(most_for(4), most_for(8));

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

const Columns& columns(int bits, int tokens) {
    return bits == 4 ? four_columns(tokens, std::make_integer_sequence<int, most_for(4)>())
                     : eight_columns(tokens, std::make_integer_sequence<int, most_for(8)>());
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

    Sums(const Work& work, Place panel, int64_t token, const float* base, const float* adapted)
        : base(base), row(work.base.row_at(panel)), adapted(adapted),
          adapter_row(work.adapter ? work.adapter->row_at(panel) : nullptr), scale(work.base.scale(token)),
          adapter_scale(work.adapter ? work.adapter->scale(token) : 0) {}

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
        const Sums own(work, first, token, base, adapted);
        To* to = static_cast<To*>(work.y) + token * work.width() + panel * PANEL;
        const To* onto = work.onto ? static_cast<const To*>(work.onto) + (to - static_cast<To*>(work.y)) : nullptr;
        int o = 0;
        if (work.parts == 2) {
            const Sums up(work, second, token, base + AT_ONCE * PANEL, adapted + AT_ONCE * PANEL);
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

// Unpacks a panel of 4 bits to int8, with the scales of its outputs: the largest possible value becomes 127.
void widen(const uint8_t* four, int64_t groups, const float* row, int outputs, uint8_t* eight, float* eight_row) {
    constexpr int VECTORS = PANEL / LANES;
    Vec largest[VECTORS] = {}, factor[VECTORS];
    for (int64_t g = 0; g < groups; g++)
        for (int v = 0; v < VECTORS; v++) {
            const uint8_t* s = four + g * BYTES4 + NIBBLES + v * LANES;
            const Vec z = as_vector(s + PANEL);
            largest[v] = most(largest[v], as_vector(s) * most(z, all(240) - z));
        }
    for (int v = 0; v < VECTORS; v++) factor[v] = 127.0f * 256 / most(largest[v], all(1));
    float sizes[PANEL];
    std::memcpy(sizes, largest, sizeof sizes);
    for (int o = 0; o < outputs; o++) eight_row[o] = row[o] * sizes[o] / (127.0f * 16);
    for (int64_t g = 0; g < groups; g++, four += BYTES4, eight += BYTES8)
        for (int v = 0; v < VECTORS; v++) {
            // In 256ths: the step of a nibble, and the value of nibble 0 plus one half for rounding and 128.
            const uint8_t* at = four + NIBBLES + v * LANES;
            const Vec s = as_vector(at) * factor[v], none = 128.5f * 256 - as_vector(at + PANEL) * s;
            const Ints step = __builtin_convertvector(16.0f * s + 0.5f, Ints);
            const Ints zero = __builtin_convertvector(none, Ints);
            const Shorts steps = as<Shorts>(step | step << 16), zeros = as<Shorts>(zero | zero << 16);
            for (int j = 0; j < 4; j++) {
                const int place = (j * PANEL + v * LANES) * QUAD;
                const Shorts pairs = read<Shorts>(four + place);
                for (int half = 0; half < 2; half++) {
                    const Shorts even = (pairs >> 4 * half & 15) * steps + zeros;
                    const Shorts odd = (pairs >> (8 + 4 * half) & 15) * steps + zeros;
                    const Shorts both = even >> 8 | (odd & 0xff00);
                    std::memcpy(eight + half * 4 * PANEL * QUAD + place, &both, sizeof both);
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
    const int64_t bytes = base.x.groups * BYTES8 * (to_words ? 2 : 1);
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
                widen_words(base.at(place), base.x.groups, wide.data() + to * bytes);
#else
                widen(base.at(place), base.x.groups, base.row_at(place), outputs, wide.data() + to * bytes,
                      row.data() + to * PANEL);
#endif
            }
        multiply(widened, first, last);
    }
}

// Quantizes one token's k activations to int8 with a largest magnitude of 127. A token with an infinite or NaN
// activation gets the scale NaN. Writes `offset` if it isn't null.
template <typename From>
void quantize_token(const From* x, int64_t k, int64_t groups, int8_t* a, float* scale, int32_t* offset, int32_t* total) {
    constexpr int VECTORS = GROUP / LANES;
    const int64_t whole = k / GROUP * GROUP;
    From rest[GROUP] = {};  // the last group, if it is incomplete
    std::memcpy(rest, x + whole, size_t(k - whole) * sizeof(From));

    Ints most[VECTORS] = {};
    const auto measure = [&](const From* from) {
        for (int v = 0; v < VECTORS; v++) {
            const Ints size = as<Ints>(load(from + v * LANES)) & 0x7fffffff;
            most[v] = size > most[v] ? size : most[v];
        }
    };
    for (int64_t i = 0; i < whole; i += GROUP) measure(x + i);
    measure(rest);
    int32_t sizes[GROUP];
    std::memcpy(sizes, most, sizeof sizes);
    const int32_t largest = *std::max_element(sizes, sizes + GROUP);
    const bool finite = largest < 0x7f800000;
    *scale = finite ? std::max(as<float>(largest) / 127.0f, 1e-30f) : NAN;
    const float inverse = finite ? 1.0f / *scale : 0.0f;

    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    Bits sums[VECTORS] = {};
    const auto round = [&](const From* from, int8_t* to) {
        for (int v = 0; v < VECTORS; v++) {
            const Vec shifted = load(from + v * LANES) * inverse + 12582912.0f;
            const Bytes bytes = narrowed(as<Ints>(shifted));
            std::memcpy(to + v * LANES, &bytes, sizeof bytes);
            sums[v] += as<Bits>(shifted);
        }
    };
    for (int64_t i = 0; i < whole; i += GROUP) round(x + i, a + i);
    if (whole < k) round(rest, a + whole);
    uint32_t all_sums[GROUP], sum = 0;
    std::memcpy(all_sums, sums, sizeof all_sums);
    for (const uint32_t one_sum : all_sums) sum += one_sum;
    *total = finite ? int32_t(sum - uint32_t(groups * GROUP) * 0x4b400000u) : 0;
    if (!offset) return;
    for (int64_t g = 0; g < groups; g++, a += GROUP) {
        int32_t of_group = 0;
        for (int i = 0; i < GROUP; i++) of_group += a[i];
        offset[g] = int32_t(uint16_t(-of_group));
    }
}

// Tokens `begin` to `end` of x [m k], float32 or bfloat16, in the form of `Tokens`.
void quantize(const void* x, bool bf16, int64_t begin, int64_t end, int64_t k, int8_t* a, float* scale, int32_t* offset,
              int32_t* total) {
    const int64_t groups = up(k, GROUP);
    for (int64_t t = begin; t < end; t++) {
        int8_t* to = a + t * groups * GROUP;
        int32_t* offset_of = offset ? offset + t * groups : nullptr;
        if (bf16)
            quantize_token(static_cast<const uint16_t*>(x) + t * k, k, groups, to, scale + t, offset_of, total + t);
        else
            quantize_token(static_cast<const float*>(x) + t * k, k, groups, to, scale + t, offset_of, total + t);
    }
}
