// The operations between int8 products of the encoders, each in one pass: the residual sum, norm, gate or convolution,
// and the quantization of the next product's activations.
//
// An int8 product is a `Raw`: its sums times the weight's scales, before each row's scale and the bias are applied. The
// activations of the next product are bytes q + 128 and a scale per row, q from -127 to 127.
//
// The kernels (encoder_kernel.h) are written once, over the vectors of each set of instructions. Paths may differ in
// the last bits.

#include "encoder.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector is passed to a function that isn't inlined

using namespace polyphi;

namespace {

constexpr int ROWS = 4;         // rows that a thread processes at a time
constexpr int64_t ABREAST = 4;  // outputs of a strided convolution that are computed at once

int64_t rounded_up(int64_t count) { return (count + ABREAST - 1) / ABREAST * ABREAST; }

// Output rows: bytes with scales, or bfloat16.
struct Out {
    uint8_t* q;
    float* scale;
    uint16_t* y;
};

// x + factor * raw to `sum` (null `raw.at`: x is unchanged), and its norm to `out` (null `weight`: no norm).
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

enum Activation { NONE, RELU, SILU, GELU, GATED };

// f(raw); GATED maps rows of 2 d to d, the first half times silu of the second.
struct Activate {
    Raw raw;
    int kind;
    Out out;
    int64_t d;
};

// A causal depthwise convolution over the last `width` rows within a window (`age`: rows since the window's start).
// taps [width d], the current row's last.
struct Causal {
    const uint16_t* x;
    const float *taps, *bias;
    const int64_t* age;
    Out out;
    int64_t width, d;
};

// A depthwise 3 x 3 convolution of stride 2 and padding 1 after relu of a product [times, bands, d], or of a first
// convolution of the same kind over one channel: frames padded with zeros, `frame` floats apart (weights [9 d]). Input
// times whose `heard` is 0 are zero. To [times/2 * bands/2 d], halves rounded up.
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

float* scratch(int64_t size) {
    static thread_local Room<float> room;
    return room.of(size);
}

#define KERNEL "encoder_kernel.h"
#include "paths.h"

#define ON_EVERY_PATH(NAME, WORK)                                                                       \
    void run(const WORK& w, int isa, int64_t rows, Parallel parallel, int threads) {                     \
        if (isa < 0) isa = best();                                                                      \
        const auto kernel = CHOSEN(isa, NAME);                                                          \
        spread([&](int64_t begin, int64_t end) { kernel(w, begin, end); }, rows, ROWS, parallel, threads); \
    }

ON_EVERY_PATH(norm, Norm)
ON_EVERY_PATH(activation, Activate)
ON_EVERY_PATH(causal, Causal)
ON_EVERY_PATH(strided, Strided)

}  // namespace

extern "C" {

// In all of these a product is its rows `at`, their stride, their scales and the bias; null ones are not applied.

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
