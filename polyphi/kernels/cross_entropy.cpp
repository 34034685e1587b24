// The cross-entropy of logits [rows, vocabulary] and its gradient, which replaces the logits. Everything is computed in
// float32; logits and gradients are float32 or bfloat16.

#include "native.h"

using namespace polyphi;

namespace {

#define KERNEL "cross_entropy_kernel.h"
#include "paths.h"

template <class Kind>
void all_rows(int isa, void* logits, const int64_t* labels, float* losses, int64_t rows, int64_t vocabulary,
              bool gradient, Parallel parallel, int threads) {
    const auto row = CHOSEN(isa, cross_entropy_row<Kind>);
    auto* at = static_cast<Kind*>(logits);
    const auto some = [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++)
            losses[t] = row(at + t * vocabulary, labels[t], vocabulary, gradient);
    };
    spread(some, rows, 1, parallel, threads);
}

}  // namespace

extern "C" {

// In float32 or bfloat16 (`bf16`), by the path `isa` (-1: the best): `losses` [rows] of the `labels` [rows]; where
// `gradient` isn't 0, the logits become its gradient.
void polyphi_cross_entropy(int isa, int bf16, void* logits, const int64_t* labels, float* losses, int64_t rows,
                           int64_t vocabulary, int gradient, Parallel parallel, int threads) {
    const auto run = bf16 ? all_rows<uint16_t> : all_rows<float>;
    run(isa < 0 ? best() : isa, logits, labels, losses, rows, vocabulary, gradient != 0, parallel, threads);
}

}  // extern "C"
