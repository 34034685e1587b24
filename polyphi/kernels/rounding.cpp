// Weights rounded to 4 bits with the least squared error of each group: the search of quantization/rounding.py, whose
// steps and order of sums these are. And to 6 and 8 bits, rotated before.

#include "packed.h"

using namespace polyphi;

namespace {

// A weight [outputs inputs] in float32 or bfloat16, the unit of each output's scales, and the results: levels
// [outputs inputs], scales and zeros [outputs groups].
struct Search {
    const void* weight;
    const float* row;
    uint8_t *q, *s, *z;
    int64_t inputs;
    const float* starts;  // pairs: shares of the smallest and largest weight
    int start_count, fits;

    int64_t groups() const { return inputs / GROUP; }
};

// A weight [outputs inputs] in float32 or bfloat16, rotated and rounded to levels from -most to most: levels
// [outputs blocks * BLOCK], scales [outputs blocks], and the unit of each output's scales.
struct Blocks {
    const void* weight;
    int8_t* q;
    uint8_t* s;
    float* row;
    int64_t inputs;
    int most;
};

#define KERNEL "rounding_kernel.h"
#include "paths.h"

}  // namespace

extern "C" {

// See `polyphi_linear` for `isa`, `parallel` and `threads`.
void polyphi_search(int isa, const void* weight, int bf16, const float* row, uint8_t* q, uint8_t* s, uint8_t* z,
                    int64_t outputs, int64_t inputs, const float* starts, int start_count, int fits,
                    Parallel parallel, int threads) {
    if (isa < 0) isa = best();
    threads = std::max(1, threads);
    const Search search{weight, row, q, s, z, inputs, starts, start_count, fits};
    const auto run = bf16 ? CHOSEN(isa, search_rows<uint16_t>) : CHOSEN(isa, search_rows<float>);
    const int64_t chunk = std::max<int64_t>(1, outputs / (8 * threads));
    spread([&](int64_t begin, int64_t end) { run(search, begin, end); }, outputs, chunk, parallel, threads);
}

// Blocks with a scale each; see `Blocks`.
void polyphi_round_blocks(int isa, const void* weight, int bf16, int8_t* q, uint8_t* s, float* row, int64_t outputs,
                          int64_t inputs, int most, Parallel parallel, int threads) {
    if (isa < 0) isa = best();
    threads = std::max(1, threads);
    const Blocks blocks{weight, q, s, row, inputs, most};
    const auto run = bf16 ? CHOSEN(isa, round_blocks<uint16_t>) : CHOSEN(isa, round_blocks<float>);
    const int64_t chunk = std::max<int64_t>(1, outputs / (8 * threads));
    spread([&](int64_t begin, int64_t end) { run(blocks, begin, end); }, outputs, chunk, parallel, threads);
}

// x [rows inputs] in float32 or bfloat16, times the rotation, to `to` [rows blocks * BLOCK].
void polyphi_rotate(int isa, const void* x, int bf16, float* to, int64_t rows, int64_t inputs, Parallel parallel,
                    int threads) {
    if (isa < 0) isa = best();
    threads = std::max(1, threads);
    const auto run = bf16 ? CHOSEN(isa, rotate_rows<uint16_t>) : CHOSEN(isa, rotate_rows<float>);
    const int64_t chunk = std::max<int64_t>(1, rows / (8 * threads));
    spread([&](int64_t begin, int64_t end) { run(x, to, begin, end, inputs); }, rows, chunk, parallel, threads);
}

}  // extern "C"
