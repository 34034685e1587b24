// Linear layers with weights [n k] in bfloat16 and float32 sums.
//
// Few tokens: weights are read in one stream at memory bandwidth; the kernel of a matrix product reads them at two
// thirds of it. Many tokens: for CPUs without products of bfloat16, where torch's are slow. Weights are unpacked to
// float32 some panels at a time, in a buffer that stays in the second-level cache.
//
// The kernel (bf16_kernel.h) is written once, over the vectors of each set of instructions.

#include "native.h"

using namespace polyphi;

namespace {

constexpr int64_t FEW = 16;      // most tokens for which weights are read row by row
constexpr int64_t AHEAD = 1024;  // distance of prefetching in weights, for few tokens
constexpr int64_t DEPTH = 256;   // inputs that are multiplied before sums are stored
constexpr int64_t SHARE = 96;    // tokens whose inputs stay in the second-level cache
constexpr int64_t WIDEST = 128;  // outputs that a thread processes at once
constexpr int64_t SKEW = 16;     // floats between tokens, so that their addresses don't compete for the same cache lines

// y [m n], float32 or bfloat16: keep * y + scale * (product + bias); `bias` may be null.
struct Results {
    void* y;
    const uint16_t* bias;
    float keep, scale;
    bool bf16;

    template <typename To>
    void put(To* to, int64_t output, float sum) const {
        const float value = scale * (bias ? sum + from_bf16(bias[output]) : sum);
        const auto read = [](To at) { return sizeof(To) == 2 ? from_bf16(uint16_t(at)) : float(at); };
        const float total = keep ? keep * read(*to) + value : value;
        if constexpr (sizeof(To) == 2)
            *to = to_bf16(total);
        else
            *to = total;
    }
    void put(int64_t index, int64_t output, float sum) const {
        if (bf16)
            put(static_cast<uint16_t*>(y) + index, output, sum);
        else
            put(static_cast<float*>(y) + index, output, sum);
    }
};

// The product of tokens x [m k] as floats, `stride` apart, and weights [n k].
struct Work {
    const float* x;
    int64_t stride;
    const uint16_t* w;
    Results results;
    int64_t m, n, k;
};

// Memory of a thread, reused between calls.
float* scratch(int64_t floats) {
    static thread_local Room<float> room;
    return room.of(floats);
}

#define KERNEL "bf16_kernel.h"
#include "paths.h"

}  // namespace

extern "C" {

// The linear layer of x [m k] with w [n k] and a bias [n] (or null), both in bfloat16: y [m n] = keep * y + scale * (w
// x + bias), x and y of one type (float32 or bfloat16). See `polyphi_linear` for `isa`, `parallel` and `threads`.
void polyphi_bf16(int isa, const void* x, const uint16_t* w, const uint16_t* bias, void* y, int bf16, float keep,
                  float scale, int64_t m, int64_t n, int64_t k, Parallel parallel, int threads) {
    if (isa < 0) isa = best();
    const auto widen_token = CHOSEN(isa, wide);
    threads = std::max(1, threads);
    const int64_t stride = up(k, SKEW) * SKEW + SKEW;
    const bool copied = bf16 || (m > 1 && k % 1024 == 0);
    const std::unique_ptr<float[]> wide(copied ? new float[m * stride] : nullptr);
    const auto widen = [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++) {
            float* to = wide.get() + t * stride;
            if (bf16)
                widen_token(static_cast<const uint16_t*>(x) + t * k, k, to);
            else
                std::memcpy(to, static_cast<const float*>(x) + t * k, size_t(k) * sizeof(float));
        }
    };
    if (copied) spread(widen, m, std::max<int64_t>(16, up(m, 4 * threads)), parallel, threads);
    const float* tokens = copied ? wide.get() : static_cast<const float*>(x);
    const Results results{y, bias, keep, scale, bf16 != 0};
    const Work work{tokens, copied ? stride : k, w, results, m, n, k};
    if (m <= FEW) {
        const int64_t chunk = std::max<int64_t>(16, n / (8 * threads));
        const auto run = CHOSEN(isa, rows);
        spread([&](int64_t begin, int64_t end) { run(work, begin, end); }, n, chunk, parallel, threads);
        return;
    }
    const int64_t outputs = CHOSEN(isa, PANEL), panels = up(n, outputs);
    const int64_t chunk = std::clamp<int64_t>(panels / (4 * threads), 1, std::max<int64_t>(1, WIDEST / outputs));
    const auto run = CHOSEN(isa, panels);
    spread([&](int64_t begin, int64_t end) { run(work, begin, end); }, panels, chunk, parallel, threads);
}

}  // extern "C"
