// Pieces of the encoders: bidirectional attention over bfloat16, and what stands between products of 8 bits, each in
// one pass: the sum of the residual, norm, gate or convolution, and the next product's activations.
//
// An int8 product comes as `Raw`: its sums times the weight's scales, to which each row's scale and the bias are still
// owed. What leaves for the next product are bytes q + 128 and a scale per row, q from -127 to 127.
//
// All but attention is written once, over vectors of 16 floats that the compiler cuts to what the CPU has; attention
// needs AVX-512's products of bfloat16.

// Products and sums may be one operation here: nothing has to be the same to the bit on every path.
#pragma GCC optimize("fp-contract=fast")

#include <memory>

#include "native.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector is passed to a function that isn't inlined

#define INLINE inline __attribute__((always_inline))

using namespace polyphi;

namespace {

constexpr int LANES = 16;
constexpr int ROWS = 4;  // that a thread takes at a time

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
using Bytes = uint8_t __attribute__((vector_size(16)));

INLINE Floats all(float value) { return Floats{} + value; }

INLINE Floats load(const float* at) {
    Floats value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

INLINE void store(float* at, Floats value) { std::memcpy(at, &value, sizeof value); }

INLINE Floats load(const uint16_t* at) {
    Halves halves;
    std::memcpy(&halves, at, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// Rounded to even; no number stays none.
INLINE void store(uint16_t* at, Floats value) {
    const Words bits = (Words)value, odd = bits >> 16 & 1;
    const Words rounded = value == value ? bits + 0x7fff + odd : bits | 0x400000;
    const Halves halves = __builtin_convertvector(rounded >> 16, Halves);
    std::memcpy(at, &halves, sizeof halves);
}

INLINE Floats least(Floats a, Floats b) { return a < b ? a : b; }
INLINE Floats most(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats magnitude(Floats a) { return (Floats)((Words)a & 0x7fffffff); }

// The nearest whole number, of values under 2^22.
INLINE Floats whole(Floats a) {
    const Floats shift = all(12582912.0f);
    return (a + shift) - shift;
}

INLINE float sum(Floats a) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += a[i];
    return total;
}

INLINE float largest(Floats a) {
    float found = a[0];
    for (int i = 1; i < LANES; i++) found = std::max(found, a[i]);
    return found;
}

// e^x to within 3 units in the last place, for x from -87 to 88 and as at those ends beyond: Cody and Waite's
// reduction, the series to degree 6.
INLINE Floats exponential(Floats x) {
    x = most(least(x, all(88.0f)), all(-87.0f));
    const Floats n = whole(x * 1.44269504f);
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = all(1.0f / 720);
    for (float next : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + next;
    return p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE Floats gelu(Floats x) {  // the tanh form
    return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}

// A row as bytes, and its scale.
INLINE float quantise(const float* row, int64_t d, uint8_t* q) {
    Floats high = {};
    for (int64_t i = 0; i < d; i += LANES) high = most(high, magnitude(load(row + i)));
    const float scale = std::max(largest(high) / 127.0f, 1e-12f), inverse = 1.0f / scale;
    for (int64_t i = 0; i < d; i += LANES) {
        const Floats value = whole(load(row + i) * inverse);
        const Ints shifted = __builtin_convertvector(most(least(value, all(127)), all(-127)), Ints) + 128;
        const Bytes bytes = __builtin_convertvector(shifted, Bytes);
        std::memcpy(q + i, &bytes, sizeof bytes);
    }
    return scale;
}

// Rows of a product, `stride` apart. A null `scale` means none is owed, a null `bias` neither.
struct Raw {
    const uint16_t* at;
    int64_t stride;
    const float *scale, *bias;

    INLINE Floats operator()(int64_t row, int64_t i) const {
        Floats value = load(at + row * stride + i);
        if (scale) value *= scale[row];
        return bias ? value + load(bias + i) : value;
    }
};

// Where rows go: bytes with scales, or bfloat16.
struct Out {
    uint8_t* q;
    float* scale;
    uint16_t* y;

    INLINE void operator()(int64_t row, const float* values, int64_t d) const {
        if (q) scale[row] = quantise(values, d, q + row * d);
        if (y)
            for (int64_t i = 0; i < d; i += LANES) store(y + row * d + i, load(values + i));
    }
};

// Memory that grows, from the start of a cache line on: a vector across two lines takes two reads.
template <typename T>
class Room {
public:
    T* of(int64_t count) {
        constexpr int64_t line = 64 / sizeof(T);
        if (int64_t(held.size()) < count + line) held.resize(count + line);
        void* start = held.data();
        size_t space = held.size() * sizeof(T);
        return first = static_cast<T*>(std::align(64, count * sizeof(T), start, space));
    }
    T* first = nullptr;

private:
    std::vector<T> held;
};

float* scratch(int64_t size) {
    static thread_local Room<float> room;
    return room.of(size);
}

// ------------------------------------------------------------------ residual and norm

// x + factor * raw to `sum` (null `raw.at`: x stands), and its norm to `out` (null `weight`: no norm is wanted).
struct Norm {
    const uint16_t* x;
    Raw raw;
    float factor;
    uint16_t* sum;
    const float *weight, *bias;
    float eps;
    Out out;
    int64_t d;
};

INLINE void norm(const Norm& w, int64_t begin, int64_t end) {
    float* row = scratch(w.d);
    for (int64_t t = begin; t < end; t++) {
        Floats total = {};
        for (int64_t i = 0; i < w.d; i += LANES) {
            Floats value = load(w.x + t * w.d + i);
            if (w.raw.at) {
                uint16_t* at = w.sum + t * w.d + i;
                store(at, value + w.factor * w.raw(t, i));
                value = load(at);
            }
            store(row + i, value);
            total += value;
        }
        if (!w.weight) continue;
        const float mean = ::sum(total) / float(w.d);
        Floats squares = {};
        for (int64_t i = 0; i < w.d; i += LANES) {
            const Floats off = load(row + i) - mean;
            squares += off * off;
        }
        const float inverse = 1.0f / std::sqrt(::sum(squares) / float(w.d) + w.eps);
        for (int64_t i = 0; i < w.d; i += LANES)
            store(row + i, (load(row + i) - mean) * inverse * load(w.weight + i) + load(w.bias + i));
        w.out(t, row, w.d);
    }
}

// ------------------------------------------------------------------ activations

enum Activation { NONE, RELU, SILU, GELU, GATED };

// f(raw); GATED takes rows of 2 d to d, the first half times silu of the second.
struct Activate {
    Raw raw;
    int kind;
    Out out;
    int64_t d;
};

template <int KIND>
INLINE void activate(const Activate& w, int64_t begin, int64_t end) {
    float* row = scratch(w.d);
    for (int64_t t = begin; t < end; t++) {
        for (int64_t i = 0; i < w.d; i += LANES) {
            Floats value = w.raw(t, i);
            if (KIND == RELU) value = most(value, Floats{});
            if (KIND == SILU) value *= sigmoid(value);
            if (KIND == GELU) value = gelu(value);
            if (KIND == GATED) {
                const Floats gate = w.raw(t, w.d + i);
                value *= gate * sigmoid(gate);
            }
            store(row + i, value);
        }
        w.out(t, row, w.d);
    }
}

INLINE void activation(const Activate& w, int64_t begin, int64_t end) {
    if (w.kind == NONE) activate<NONE>(w, begin, end);
    if (w.kind == RELU) activate<RELU>(w, begin, end);
    if (w.kind == SILU) activate<SILU>(w, begin, end);
    if (w.kind == GELU) activate<GELU>(w, begin, end);
    if (w.kind == GATED) activate<GATED>(w, begin, end);
}

// ------------------------------------------------------------------ convolutions

// Each channel over its own last `width` rows, none from before its window (`age` counts rows since that began).
// taps [width d], the present row's last.
struct Causal {
    const uint16_t* x;
    const float *taps, *bias;
    const int64_t* age;
    Out out;
    int64_t width, d;
};

INLINE void causal(const Causal& w, int64_t begin, int64_t end) {
    float* row = scratch(w.d);
    for (int64_t t = begin; t < end; t++) {
        const int64_t past = std::min(w.age[t], w.width - 1);
        for (int64_t i = 0; i < w.d; i += LANES) {
            Floats value = load(w.bias + i);
            for (int64_t back = 0; back <= past; back++)
                value += load(w.x + (t - back) * w.d + i) * load(w.taps + (w.width - 1 - back) * w.d + i);
            store(row + i, value);
        }
        w.out(t, row, w.d);
    }
}

// A depthwise convolution 3 x 3 of stride 2 and padding 1 behind relu of a product [times, bands, d], or of a first
// convolution of the same kind over one channel: frames with blanks around them, `frame` floats apart (weights [9 d]).
// Times of its input where `heard` is 0 are blank. To [times/2 * bands/2 d], halves rounded up.
struct Strided {
    Raw raw;
    const float* frames;
    int64_t frame;
    const float *first, *first_bias;
    const uint8_t* heard;
    const float *weight, *bias;
    Out out;
    int64_t times, bands, d;
};

constexpr int64_t ABREAST = 4;  // outputs whose sums are made at once

INLINE int64_t rounded_up(int64_t count) { return (count + ABREAST - 1) / ABREAST * ABREAST; }

// ABREAST outputs: `at(y, x)` gives the input of the first one's tap, the next one's lies two further.
template <typename At, typename Put>
INLINE void convolve(const Floats* weight, Floats bias, const At& at, const Put& put) {
    Floats total[ABREAST];
    for (int64_t j = 0; j < ABREAST; j++) total[j] = bias;
    for (int64_t y = 0; y < 3; y++)
        for (int64_t x = 0; x < 3; x++)
            for (int64_t j = 0; j < ABREAST; j++) total[j] += weight[3 * y + x] * at(y, 2 * j + x);
    for (int64_t j = 0; j < ABREAST; j++) put(j, total[j]);
}

INLINE void taps(const float* weights, int64_t d, int64_t i, Floats* to) {
    for (int j = 0; j < 9; j++) to[j] = load(weights + j * d + i);
}

// One time of the output. Three times of the input are made first, a vector of channels after the other, with a blank
// band before and after.
INLINE void strided(const Strided& w, int64_t begin, int64_t end) {
    const int64_t bands = (w.bands + 1) / 2, room = 2 * rounded_up(bands) + 2 * ABREAST;
    float *rows = scratch(rounded_up(bands) * w.d + 3 * room * LANES), *inputs = rows + rounded_up(bands) * w.d;
    const auto band = [&](int64_t y, int64_t f) __attribute__((always_inline)) {
        return inputs + (y * room + 1 + f) * LANES;
    };
    std::memset(inputs, 0, 3 * room * LANES * sizeof(float));
    for (int64_t t = begin; t < end; t++) {
        for (int64_t i = 0; i < w.d; i += LANES) {
            Floats weight[9] = {};
            if (w.frames) taps(w.first, w.d, i, weight);
            for (int64_t y = 0; y < 3; y++) {
                const int64_t time = 2 * t + y - 1;
                if (time < 0 || time >= w.times || !w.heard[time]) {
                    for (int64_t f = 0; f < w.bands; f++) store(band(y, f), Floats{});
                } else if (w.frames) {
                    const Floats bias = load(w.first_bias + i);
                    for (int64_t f = 0; f < w.bands; f += ABREAST) {
                        const float* frame = w.frames + 2 * time * w.frame + 2 * f;
                        convolve(
                            weight, bias,
                            [&](int64_t row, int64_t column)
                                __attribute__((always_inline)) { return frame[row * w.frame + column]; },
                            [&](int64_t j, Floats value) __attribute__((always_inline)) {
                                if (f + j < w.bands) store(band(y, f + j), most(value, Floats{}));
                            });
                    }
                } else {
                    for (int64_t f = 0; f < w.bands; f++)
                        store(band(y, f), most(w.raw(time * w.bands + f, i), Floats{}));
                }
            }
            taps(w.weight, w.d, i, weight);
            const Floats bias = load(w.bias + i);
            for (int64_t f = 0; f < bands; f += ABREAST)
                convolve(
                    weight, bias,
                    [&](int64_t row, int64_t column)
                        __attribute__((always_inline)) { return load(band(row, 2 * f + column - 1)); },
                    [&](int64_t j, Floats value)
                        __attribute__((always_inline)) { store(rows + (f + j) * w.d + i, value); });
        }
        for (int64_t f = 0; f < bands; f++) w.out(t * bands + f, rows + f * w.d, w.d);
    }
}

#if POLYPHI_X86
#define WITH(features) __attribute__((target(features)))
#define ON_EVERY_PATH(NAME, WORK)                                                                  \
    WITH(POLYPHI_AVX512) void NAME##_avx512(const WORK& w, int64_t begin, int64_t end) { NAME(w, begin, end); } \
    WITH(POLYPHI_AVX2) void NAME##_avx2(const WORK& w, int64_t begin, int64_t end) { NAME(w, begin, end); }     \
    void NAME##_any(const WORK& w, int64_t begin, int64_t end) { NAME(w, begin, end); }                \
    void run(const WORK& w, int isa, int64_t rows, Parallel parallel, int threads) {                   \
        if (isa < 0) isa = best();                                                                     \
        const auto kernel = isa == AVX512 ? NAME##_avx512 : isa ? NAME##_avx2 : NAME##_any;    \
        spread([&](int64_t begin, int64_t end) { kernel(w, begin, end); }, rows, ROWS, parallel, threads); \
    }
#else
#define ON_EVERY_PATH(NAME, WORK)                                                                  \
    void run(const WORK& w, int, int64_t rows, Parallel parallel, int threads) {                       \
        spread([&](int64_t begin, int64_t end) { NAME(w, begin, end); }, rows, ROWS, parallel, threads); \
    }
#endif

ON_EVERY_PATH(norm, Norm)
ON_EVERY_PATH(activation, Activate)
ON_EVERY_PATH(causal, Causal)
ON_EVERY_PATH(strided, Strided)

// ------------------------------------------------------------------ attention

// Within segments of rows: of each the first `keys` rows are seen by the first `queries` rows. Scores are scaled by
// 1/sqrt(d), and `distances` [heads, 2 longest - 1], if given, is added to them by key - query.
struct Attention {
    Raw q, k, v;
    uint16_t* y;
    const int64_t *starts, *queries, *keys;
    int64_t heads, d;
    const float* distances;
    int64_t longest;
};

#if POLYPHI_X86

#define WITH_BF16 WITH(POLYPHI_AVX512 ",avx512bf16")

constexpr int TOGETHER = 5;    // queries whose scores are made at once
constexpr int BLOCK = 64;      // keys beside each other
constexpr int WIDEST = 80;     // channels of a head: 5 vectors for 5 queries are all the sums that registers hold

bool attends() { return best() == AVX512 && __builtin_cpu_supports("avx512bf16"); }

// A head's keys and values as products of pairs want them: keys [block, pair of channels, 64 keys, 2], values [pair of
// keys, channels rounded up to 16, 2]; and scores of some queries.
struct Head {
    Room<uint16_t> rows, keys, values, shares;
    Room<float> scores;
};

WITH_BF16 inline __m512 bf16_512(const uint16_t* at) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))), 16));
}

// Channels `from` to `from + d` of a row in bfloat16, zeros up to `room` (a multiple of 16).
WITH_BF16 void copy_row(const Raw& raw, int64_t row, int64_t from, int64_t d, int64_t room, uint16_t* to) {
    const uint16_t* at = raw.at + row * raw.stride + from;
    for (int64_t i = 0; i < room; i += LANES) {
        const __mmask16 mask = i + LANES <= d ? 0xffff : i < d ? (1 << (d - i)) - 1 : 0;
        __m256i halves = _mm256_maskz_loadu_epi16(mask, at + i);
        if (raw.scale) {
            const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
            const __m512 bias = raw.bias ? _mm512_maskz_loadu_ps(mask, raw.bias + from + i) : _mm512_setzero_ps();
            halves = (__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(value, _mm512_set1_ps(raw.scale[row]), bias));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), halves);
    }
}

WITH_BF16 void pack_head(const Attention& w, Head& head, int64_t start, int64_t count, int64_t from) {
    const int64_t room = (w.d + LANES - 1) / LANES * LANES, blocks = (count + BLOCK - 1) / BLOCK;
    uint16_t* rows = head.rows.of(BLOCK * room);
    uint16_t* keys = head.keys.of(blocks * BLOCK * w.d);
    uint16_t* values = head.values.of(blocks * BLOCK * room);
    const __m512i lanes = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(int(room / 2)));
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t here = std::min<int64_t>(BLOCK, count - b * BLOCK);
        std::memset(rows + here * room, 0, (BLOCK - here) * room * 2);
        for (int64_t j = 0; j < here; j++) copy_row(w.k, start + b * BLOCK + j, from, w.d, room, rows + j * room);
        for (int64_t p = 0; p < w.d / 2; p++)
            for (int64_t part = 0; part < BLOCK / LANES; part++) {
                const __m512i pairs = _mm512_i32gather_epi32(lanes, rows + part * LANES * room + p * 2, 4);
                _mm512_storeu_si512(keys + ((b * w.d / 2 + p) * BLOCK + part * LANES) * 2, pairs);
            }
        for (int64_t j = 0; j < here; j++) copy_row(w.v, start + b * BLOCK + j, from, w.d, room, rows + j * room);
        for (int64_t j = 0; j < BLOCK; j += 2)
            for (int64_t i = 0; i < room; i += LANES) {
                const auto* even = reinterpret_cast<const __m256i*>(rows + j * room + i);
                const auto* odd = reinterpret_cast<const __m256i*>(rows + (j + 1) * room + i);
                const __m512i pair = _mm512_or_si512(
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256(even)),
                    _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(odd)), 16));
                _mm512_storeu_si512(values + ((b * BLOCK + j) / 2 * room + i) * 2, pair);
            }
    }
}

WITH_BF16 inline __m512bh pair_of(const uint16_t* at) {
    int32_t pair;
    std::memcpy(&pair, at, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

// Scores of Q queries (`rows`, `room` apart) and all keys, `width` apart.
template <int Q>
WITH_BF16 void score(const Head& head, const uint16_t* rows, int64_t room, int64_t d, int64_t width, float* scores) {
    const uint16_t* at = head.keys.first;
    for (int64_t b = 0; b < width; b += BLOCK) {
        __m512 total[Q][4];
        for (int q = 0; q < Q; q++)
            for (int j = 0; j < 4; j++) total[q][j] = _mm512_setzero_ps();
        for (int64_t p = 0; p < d; p += 2, at += BLOCK * 2) {
            __m512bh k[4];
            for (int j = 0; j < 4; j++) k[j] = (__m512bh)_mm512_loadu_si512(at + j * LANES * 2);
            for (int q = 0; q < Q; q++) {
                const __m512bh pair = pair_of(rows + q * room + p);
                for (int j = 0; j < 4; j++) total[q][j] = _mm512_dpbf16_ps(total[q][j], pair, k[j]);
            }
        }
        for (int q = 0; q < Q; q++)
            for (int j = 0; j < 4; j++) _mm512_storeu_ps(scores + q * width + b + j * LANES, total[q][j]);
    }
}

WITH_BF16 inline __m512 exponential_512(__m512 x) {  // of x <= 0
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 120);
    for (float next : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(next));
    return _mm512_scalef_ps(p, n);
}

// Scores of one query to shares in bfloat16 that add up to the returned sum; `distances` are those of its first key on.
WITH_BF16 float softmax(float* scores, int64_t count, int64_t width, float scale, const float* distances,
                        uint16_t* shares) {
    const __m512 none = _mm512_set1_ps(-INFINITY);
    __m512 high = none;
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 real = count - i >= LANES ? 0xffff : (1 << (count - i)) - 1;
        __m512 value = _mm512_mul_ps(_mm512_loadu_ps(scores + i), _mm512_set1_ps(scale));
        if (distances) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(real, distances + i));
        value = _mm512_mask_mov_ps(none, real, value);
        _mm512_storeu_ps(scores + i, value);
        high = _mm512_max_ps(high, value);
    }
    high = _mm512_set1_ps(_mm512_reduce_max_ps(high));
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += LANES) {
        __m256i halves = _mm256_setzero_si256();
        if (i < count) {
            const __m512 share = exponential_512(_mm512_sub_ps(_mm512_loadu_ps(scores + i), high));
            total = _mm512_add_ps(total, share);
            halves = (__m256i)_mm512_cvtneps_pbh(share);
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(shares + i), halves);
    }
    return _mm512_reduce_add_ps(total);
}

// Values of V vectors mixed by the shares of Q queries.
template <int Q, int V>
WITH_BF16 void mix(const Head& head, const uint16_t* shares, int64_t width, const float* sums, int64_t d, uint16_t* y,
                   int64_t stride) {
    __m512 total[Q][V];
    for (int q = 0; q < Q; q++)
        for (int j = 0; j < V; j++) total[q][j] = _mm512_setzero_ps();
    const uint16_t* at = head.values.first;
    for (int64_t i = 0; i < width; i += 2, at += V * LANES * 2) {
        __m512bh v[V];
        for (int j = 0; j < V; j++) v[j] = (__m512bh)_mm512_loadu_si512(at + j * LANES * 2);
        for (int q = 0; q < Q; q++) {
            const __m512bh pair = pair_of(shares + q * width + i);
            for (int j = 0; j < V; j++) total[q][j] = _mm512_dpbf16_ps(total[q][j], pair, v[j]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int j = 0; j < V; j++) {
            const __mmask16 real = d - j * LANES >= LANES ? 0xffff : (1 << (d - j * LANES)) - 1;
            const __m512 value = _mm512_div_ps(total[q][j], _mm512_set1_ps(sums[q]));
            _mm256_mask_storeu_epi16(y + q * stride + j * LANES, real, (__m256i)_mm512_cvtneps_pbh(value));
        }
}

template <int Q>
WITH_BF16 void attend_some(const Attention& w, Head& head, int64_t start, int64_t first, int64_t count, int64_t h) {
    const int64_t room = (w.d + LANES - 1) / LANES * LANES, width = (count + BLOCK - 1) / BLOCK * BLOCK;
    const float scale = 1.0f / std::sqrt(float(w.d));
    float sums[Q];
    for (int q = 0; q < Q; q++) copy_row(w.q, start + first + q, h * w.d, w.d, room, head.rows.first + q * room);
    score<Q>(head, head.rows.first, room, w.d, width, head.scores.first);
    for (int q = 0; q < Q; q++) {
        const float* distances = nullptr;
        if (w.distances) distances = w.distances + h * (2 * w.longest - 1) + w.longest - 1 - (first + q);
        sums[q] = softmax(head.scores.first + q * width, count, width, scale, distances, head.shares.first + q * width);
    }
    const int64_t stride = w.heads * w.d;
    using Mix = void (*)(const Head&, const uint16_t*, int64_t, const float*, int64_t, uint16_t*, int64_t);
    static constexpr Mix mixes[] = {mix<Q, 1>, mix<Q, 2>, mix<Q, 3>, mix<Q, 4>, mix<Q, 5>};
    uint16_t* y = w.y + (start + first) * stride + h * w.d;
    mixes[room / LANES - 1](head, head.shares.first, width, sums, w.d, y, stride);
}

// One head of one segment.
WITH_BF16 void attend(const Attention& w, int64_t index) {
    static thread_local Head head;
    const int64_t segment = index / w.heads, h = index % w.heads;
    const int64_t start = w.starts[segment], count = w.keys[segment], queries = w.queries[segment];
    if (!count) {  // nothing to be seen
        for (int64_t t = start; t < start + queries; t++)
            std::memset(w.y + t * w.heads * w.d + h * w.d, 0, w.d * 2);
        return;
    }
    pack_head(w, head, start, count, h * w.d);
    const int64_t width = (count + BLOCK - 1) / BLOCK * BLOCK;
    head.scores.of(TOGETHER * width);
    head.shares.of(TOGETHER * width);
    using Some = void (*)(const Attention&, Head&, int64_t, int64_t, int64_t, int64_t);
    static constexpr Some some[] = {attend_some<1>, attend_some<2>, attend_some<3>, attend_some<4>, attend_some<5>};
    for (int64_t first = 0; first < queries; first += TOGETHER)
        some[std::min<int64_t>(TOGETHER, queries - first) - 1](w, head, start, first, count, h);
}

#else

constexpr int WIDEST = 0;
bool attends() { return false; }
void attend(const Attention&, int64_t) {}

#endif

}  // namespace

extern "C" {

// The widest head that attention takes, 0 where this CPU has no products of bfloat16.
int polyphi_attends() { return attends() ? WIDEST : 0; }

// Of all these, a product is its rows `at`, their stride, their scales and the bias; what is null isn't owed.

void polyphi_layer_norm(int isa, const void* x, const void* at, int64_t stride, const float* scale, const float* bias,
                        float factor, void* sum, const float* weight, const float* shift, float eps, uint8_t* q,
                        float* q_scale, void* y, int64_t rows, int64_t d, Parallel parallel, int threads) {
    const Raw raw{static_cast<const uint16_t*>(at), stride, scale, bias};
    const Out out{q, q_scale, static_cast<uint16_t*>(y)};
    const Norm work{static_cast<const uint16_t*>(x), raw, factor, static_cast<uint16_t*>(sum), weight, shift, eps,
                    out, d};
    run(work, isa, rows, parallel, threads);
}

void polyphi_activate(int isa, int kind, const void* at, int64_t stride, const float* scale, const float* bias,
                      uint8_t* q, float* q_scale, void* y, int64_t rows, int64_t d, Parallel parallel, int threads) {
    const Raw raw{static_cast<const uint16_t*>(at), stride, scale, bias};
    run(Activate{raw, kind, {q, q_scale, static_cast<uint16_t*>(y)}, d}, isa, rows, parallel, threads);
}

void polyphi_causal(int isa, const void* x, const float* taps, const float* bias, const int64_t* age, int64_t width,
                    uint8_t* q, float* q_scale, int64_t rows, int64_t d, Parallel parallel, int threads) {
    const Causal work{static_cast<const uint16_t*>(x), taps, bias, age, {q, q_scale, nullptr}, width, d};
    run(work, isa, rows, parallel, threads);
}

void polyphi_strided(int isa, const void* at, int64_t stride, const float* scale, const float* bias,
                     const float* frames, int64_t frame, const float* first, const float* first_bias,
                     const uint8_t* heard, const float* weight, const float* shift, uint8_t* q, float* q_scale,
                     int64_t times, int64_t bands, int64_t d, Parallel parallel, int threads) {
    const Raw raw{static_cast<const uint16_t*>(at), stride, scale, bias};
    const Strided work{raw,    frames, frame, first, first_bias,
                       heard,  weight, shift, {q, q_scale, nullptr}, times, bands, d};
    run(work, isa, (times + 1) / 2, parallel, threads);
}

void polyphi_attention(const void* q, const void* k, const void* v, int64_t stride, const float* scale,
                       const float* q_bias, const float* k_bias, const float* v_bias, void* y, const int64_t* starts,
                       const int64_t* queries, const int64_t* keys, int64_t segments, int64_t heads, int64_t d,
                       const float* distances, int64_t longest, Parallel parallel, int threads) {
    const auto part = [&](const void* at, const float* bias) {
        return Raw{static_cast<const uint16_t*>(at), stride, scale, bias};
    };
    auto* to = static_cast<uint16_t*>(y);
    const Attention work{part(q, q_bias), part(k, k_bias), part(v, v_bias), to, starts, queries, keys, heads, d,
                         distances, longest};
    spread([&](int64_t begin, int64_t end) { for (int64_t i = begin; i < end; i++) attend(work, i); },
           segments * heads, 1, parallel, threads);
}
}
