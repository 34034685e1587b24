// The operations between the products of a block: RMS norm, SwiGLU, rotary embedding, GELU. All compute in float32
// and round once; the norm also before its weight, as defined in model/decoder.py.

#include "native.h"

using namespace polyphi;

namespace {

#define KERNEL "blocks_kernel.h"
#include "paths.h"

constexpr int64_t NUMBERS = 1 << 15;  // fewest numbers of a piece of work: smaller ones are not worth a thread

// Runs row(t) for all tokens, of `width` numbers each.
template <typename Row>
void rows(const Row& row, int64_t tokens, int64_t width, Parallel parallel, int threads) {
    spread(
        [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) row(t);
        },
        tokens, std::max<int64_t>(1, NUMBERS / width), parallel, threads);
}

template <class Kind>
void norm(int isa, const void* x, const void* weight, void* y, int64_t tokens, int64_t d, float eps, Parallel parallel,
          int threads) {
    const auto row = CHOSEN(isa, norm_row<Kind>);
    const auto *from = static_cast<const Kind*>(x), *by = static_cast<const Kind*>(weight);
    auto* to = static_cast<Kind*>(y);
    rows([&](int64_t t) { row(from + t * d, by, to + t * d, d, eps); }, tokens, d, parallel, threads);
}

template <class Kind>
void gate(int isa, const void* x, void* y, int64_t tokens, int64_t d, Parallel parallel, int threads) {
    const auto row = CHOSEN(isa, gate_row<Kind>);
    const auto* from = static_cast<const Kind*>(x);
    auto* to = static_cast<Kind*>(y);
    const auto one = [&](int64_t t) { row(from + 2 * t * d, from + (2 * t + 1) * d, to + t * d, d); };
    rows(one, tokens, 2 * d, parallel, threads);
}

template <class Kind>
void gelu(int isa, const void* x, void* y, int64_t tokens, int64_t d, Parallel parallel, int threads) {
    const auto row = CHOSEN(isa, gelu_row<Kind>);
    const auto* from = static_cast<const Kind*>(x);
    auto* to = static_cast<Kind*>(y);
    rows([&](int64_t t) { row(from + t * d, to + t * d, d); }, tokens, d, parallel, threads);
}

// `of_weight` [pieces of `piece` tokens, d] begins with zeros: a sum in an order that depends on no number of threads.
template <class Kind>
void norm_backward(int isa, const void* x, const void* weight, const void* dy, void* dx, float* of_weight,
                   int64_t piece, int64_t tokens, int64_t d, float eps, Parallel parallel, int threads) {
    const auto row = CHOSEN(isa, norm_row_backward<Kind>);
    const auto *from = static_cast<const Kind*>(x), *by = static_cast<const Kind*>(weight);
    const auto* gradients = static_cast<const Kind*>(dy);
    auto* to = static_cast<Kind*>(dx);
    const auto some = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            for (int64_t t = i * piece; t < std::min(tokens, (i + 1) * piece); t++)
                row(from + t * d, by, gradients + t * d, to + t * d, of_weight + i * d, d, eps);
    };
    spread(some, up(tokens, piece), 1, parallel, threads);
}

template <class Kind>
void gate_backward(int isa, const void* x, const void* dy, void* dx, int64_t tokens, int64_t d, Parallel parallel,
                   int threads) {
    const auto row = CHOSEN(isa, gate_row_backward<Kind>);
    const auto *from = static_cast<const Kind*>(x), *gradients = static_cast<const Kind*>(dy);
    auto* to = static_cast<Kind*>(dx);
    const auto one = [&](int64_t t) {
        const int64_t gate = 2 * t * d, up = gate + d;
        row(from + gate, from + up, gradients + t * d, to + gate, to + up, d);
    };
    rows(one, tokens, 2 * d, parallel, threads);
}

template <class Kind>
void gelu_backward(int isa, const void* x, const void* dy, void* dx, int64_t tokens, int64_t d, Parallel parallel,
                   int threads) {
    const auto row = CHOSEN(isa, gelu_row_backward<Kind>);
    const auto *from = static_cast<const Kind*>(x), *gradients = static_cast<const Kind*>(dy);
    auto* to = static_cast<Kind*>(dx);
    rows([&](int64_t t) { row(from + t * d, gradients + t * d, to + t * d, d); }, tokens, d, parallel, threads);
}

template <class Kind>
void turn(int isa, const void* x, int64_t stride, const void* cos, const void* sin, void* y, int64_t tokens, int heads,
          int d, int pairs, Parallel parallel, int threads) {
    const auto row = CHOSEN(isa, turn_row<Kind>);
    const auto* from = static_cast<const Kind*>(x);
    const auto *c = static_cast<const Kind*>(cos), *s = static_cast<const Kind*>(sin);
    auto* to = static_cast<Kind*>(y);
    const int64_t width = int64_t(heads) * d;
    const auto one = [&](int64_t t) {
        row(from + t * stride, c + t * pairs, s + t * pairs, to + t * width, heads, d, pairs);
    };
    rows(one, tokens, width, parallel, threads);
}

}  // namespace

extern "C" {

// All in float32 or bfloat16 (`bf16`), by the path `isa` (-1: the best). RMS norm of x [tokens, d], times
// weight [d].
void polyphi_norm(int isa, int bf16, const void* x, const void* weight, void* y, int64_t tokens, int64_t d, float eps,
                  Parallel parallel, int threads) {
    const auto run = bf16 ? norm<uint16_t> : norm<float>;
    run(isa < 0 ? best() : isa, x, weight, y, tokens, d, eps, parallel, threads);
}

// SwiGLU of x [tokens, 2, d], the gate and the gated values: y [tokens, d].
void polyphi_gate(int isa, int bf16, const void* x, void* y, int64_t tokens, int64_t d, Parallel parallel,
                  int threads) {
    const auto run = bf16 ? gate<uint16_t> : gate<float>;
    run(isa < 0 ? best() : isa, x, y, tokens, d, parallel, threads);
}

// GELU, the tanh form, of x [tokens, d].
void polyphi_gelu(int isa, int bf16, const void* x, void* y, int64_t tokens, int64_t d, Parallel parallel,
                  int threads) {
    const auto run = bf16 ? gelu<uint16_t> : gelu<float>;
    run(isa < 0 ? best() : isa, x, y, tokens, d, parallel, threads);
}

// The gradients of these, for that of y. `of_weight` [tokens / piece rounded up, d], zeros, receives sums over `piece`
// tokens.
void polyphi_norm_backward(int isa, int bf16, const void* x, const void* weight, const void* dy, void* dx,
                           float* of_weight, int64_t piece, int64_t tokens, int64_t d, float eps, Parallel parallel,
                           int threads) {
    const auto run = bf16 ? norm_backward<uint16_t> : norm_backward<float>;
    run(isa < 0 ? best() : isa, x, weight, dy, dx, of_weight, piece, tokens, d, eps, parallel, threads);
}

void polyphi_gate_backward(int isa, int bf16, const void* x, const void* dy, void* dx, int64_t tokens, int64_t d,
                           Parallel parallel, int threads) {
    const auto run = bf16 ? gate_backward<uint16_t> : gate_backward<float>;
    run(isa < 0 ? best() : isa, x, dy, dx, tokens, d, parallel, threads);
}

void polyphi_gelu_backward(int isa, int bf16, const void* x, const void* dy, void* dx, int64_t tokens, int64_t d,
                           Parallel parallel, int threads) {
    const auto run = bf16 ? gelu_backward<uint16_t> : gelu_backward<float>;
    run(isa < 0 ? best() : isa, x, dy, dx, tokens, d, parallel, threads);
}

// Rotary embedding of x [tokens, heads, d], `stride` numbers from token to token, by cos and sin [tokens, pairs]: y
// [tokens, heads, d].
void polyphi_turn(int isa, int bf16, const void* x, int64_t stride, const void* cos, const void* sin, void* y,
                  int64_t tokens, int heads, int d, int pairs, Parallel parallel, int threads) {
    const auto run = bf16 ? turn<uint16_t> : turn<float>;
    run(isa < 0 ? best() : isa, x, stride, cos, sin, y, tokens, heads, d, pairs, parallel, threads);
}

}  // extern "C"
