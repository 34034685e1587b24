// Pieces of the encoders between products of 8 bits, each in one pass: the sum of the residual, norm, gate or
// convolution, and the next product's activations.
//
// An int8 product comes as `Raw`: its sums times the weight's scales, to which each row's scale and the bias are still
// owed. What leaves for the next product are bytes q + 128 and a scale per row, q from -127 to 127.
//
// All is written once, over vectors of 16 floats that the compiler cuts to what the CPU has.

// Products and sums may be one operation here: nothing has to be the same to the bit on every path.
#pragma GCC optimize("fp-contract=fast")

#include "encoder.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector is passed to a function that isn't inlined

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

// 16 numbers of a product.
INLINE Floats load(const Raw& raw, int64_t row, int64_t i) {
    Floats value = load(raw.at + row * raw.stride + i);
    if (raw.scale) value *= raw.scale[row];
    return raw.bias ? value + load(raw.bias + i) : value;
}

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
                store(at, value + w.factor * load(w.raw, t, i));
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
            Floats value = load(w.raw, t, i);
            if (KIND == RELU) value = most(value, Floats{});
            if (KIND == SILU) value *= sigmoid(value);
            if (KIND == GELU) value = gelu(value);
            if (KIND == GATED) {
                const Floats gate = load(w.raw, t, w.d + i);
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
                        store(band(y, f), most(load(w.raw, time * w.bands + f, i), Floats{}));
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

}  // namespace

extern "C" {

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
                     const uint8_t* heard, const float* weight, const float* shift, uint8_t* q, float* q_scale, void* y,
                     int64_t times, int64_t bands, int64_t d, Parallel parallel, int threads) {
    const Raw raw{static_cast<const uint16_t*>(at), stride, scale, bias};
    const Out out{q, q_scale, static_cast<uint16_t*>(y)};
    const Strided work{raw, frames, frame, first, first_bias, heard, weight, shift, out, times, bands, d};
    run(work, isa, (times + 1) / 2, parallel, threads);
}

}  // extern "C"
