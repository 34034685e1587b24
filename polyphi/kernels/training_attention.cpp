// Attention with gradients, causal or bidirectional, within the sequences of a pack: no padding, no probabilities kept.
// Inputs and outputs are float32 or bfloat16, and sums are in float32. Where the CPU multiplies pairs of bfloat16
// (AVX-512 BF16), probabilities and gradients of logits of bfloat16 inputs are rounded to bfloat16 for that; elsewhere
// everything is computed in float32.

#include "native.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector is passed to a function that isn't inlined

using namespace polyphi;

namespace {

// Rows of all heads, `stride` numbers apart.
template <class Kind>
struct Rows {
    const Kind* at;
    int64_t stride;
};

// Sequence s has the `counts[s]` rows from `starts[s]` on, of which the first `key_counts[s]` are keys (all of them in
// a causal one); key-value head j serves heads / kv_heads query heads.
// `distances` [heads, 2 longest - 1], if not null, is added to the logits by key - query. The forward pass writes y and
// `sums` [rows, heads], the logarithms of the sums of exponentials, from which the backward pass computes the shares
// again; it writes dq, dk, dv and adds to `of_distances` [sequences, heads, 2 longest - 1]. Only q, k and v may have
// strides.
template <class Kind>
struct Task {
    Rows<Kind> q, k, v;
    const int64_t *starts, *counts, *key_counts;
    int64_t heads, kv_heads, d;
    bool causal;
    const float* distances;
    int64_t longest;
    float* sums;
    Kind* y;
    const Kind* dy;
    Kind *dq, *dk, *dv;
    float* of_distances;
};

#define KERNEL "training_kernel.h"
#define WITH_PAIRS
#include "paths.h"

template <class Kind>
using Run = void (*)(const Task<Kind>&, int64_t);

// The forward pass (or the backward pass) by a path.
template <class Kind>
Run<Kind> chosen(int isa, bool back) {
#if POLYPHI_X86
    if constexpr (std::is_same<Kind, uint16_t>::value)
        if (isa == AVX512 && has_bf16()) return back ? avx512_bf16::backward<Kind> : avx512_bf16::forward<Kind>;
#endif
    return back ? CHOSEN(isa, backward<Kind>) : CHOSEN(isa, forward<Kind>);
}

struct Sizes {
    int64_t sequences, heads, kv_heads, d, longest;
    int causal;
};

template <class Kind>
Task<Kind> task(const void* q, const void* k, const void* v, const int64_t* strides, const int64_t* starts,
                const int64_t* counts, const int64_t* key_counts, const Sizes& sizes, const float* distances,
                float* sums) {
    const auto rows = [](const void* at, int64_t stride) { return Rows<Kind>{static_cast<const Kind*>(at), stride}; };
    return {rows(q, strides[0]), rows(k, strides[1]), rows(v, strides[2]), starts, counts, key_counts, sizes.heads,
            sizes.kv_heads, sizes.d, sizes.causal != 0, distances, sizes.longest, sums, nullptr, nullptr, nullptr,
            nullptr, nullptr, nullptr};
}

template <class Kind>
void each(Run<Kind> run, const Task<Kind>& work, int64_t sequences, Parallel parallel, int threads) {
    const auto some = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) run(work, i);
    };
    spread(some, sequences * work.kv_heads, 1, parallel, threads);
}

template <class Kind>
void go_forward(int isa, Task<Kind> work, void* y, int64_t sequences, Parallel parallel, int threads) {
    work.y = static_cast<Kind*>(y);
    each(chosen<Kind>(isa, false), work, sequences, parallel, threads);
}

template <class Kind>
void go_backward(int isa, Task<Kind> work, const void* dy, void* dq, void* dk, void* dv, float* of_distances,
                 int64_t sequences, Parallel parallel, int threads) {
    work.dy = static_cast<const Kind*>(dy);
    work.dq = static_cast<Kind*>(dq);
    work.dk = static_cast<Kind*>(dk);
    work.dv = static_cast<Kind*>(dv);
    work.of_distances = of_distances;
    each(chosen<Kind>(isa, true), work, sequences, parallel, threads);
}

}  // namespace

extern "C" {

// Both by the path `isa` (-1: the best), in float32 or bfloat16 (`bf16`), with the strides of q, k and v; see `Task`.
void polyphi_self_attention(int isa, int bf16, const void* q, const void* k, const void* v, const int64_t* strides,
                    const int64_t* starts, const int64_t* counts, const int64_t* key_counts, int64_t sequences,
                    int64_t heads, int64_t kv_heads, int64_t d, int64_t longest, int causal, const float* distances,
                    float* sums, void* y, Parallel parallel, int threads) {
    const Sizes sizes{sequences, heads, kv_heads, d, longest, causal};
    isa = isa < 0 ? best() : isa;
    if (bf16) {
        const auto work = task<uint16_t>(q, k, v, strides, starts, counts, key_counts, sizes, distances, sums);
        go_forward(isa, work, y, sequences, parallel, threads);
    } else {
        const auto work = task<float>(q, k, v, strides, starts, counts, key_counts, sizes, distances, sums);
        go_forward(isa, work, y, sequences, parallel, threads);
    }
}

void polyphi_self_attention_backward(int isa, int bf16, const void* q, const void* k, const void* v,
                                     const int64_t* strides, const int64_t* starts, const int64_t* counts,
                                     const int64_t* key_counts, int64_t sequences, int64_t heads, int64_t kv_heads,
                                     int64_t d, int64_t longest, int causal, const float* distances,
                                     float* sums, const void* dy, void* dq, void* dk, void* dv, float* of_distances,
                                     Parallel parallel, int threads) {
    const Sizes sizes{sequences, heads, kv_heads, d, longest, causal};
    isa = isa < 0 ? best() : isa;
    if (bf16) {
        const auto work = task<uint16_t>(q, k, v, strides, starts, counts, key_counts, sizes, distances, sums);
        go_backward(isa, work, dy, dq, dk, dv, of_distances, sequences, parallel, threads);
    } else {
        const auto work = task<float>(q, k, v, strides, starts, counts, key_counts, sizes, distances, sums);
        go_backward(isa, work, dy, dq, dk, dv, of_distances, sequences, parallel, threads);
    }
}

}  // extern "C"
