// Weights of 4 and 8 bits as numbers: for products with the transposed weight, which training needs. See packed.h for
// the layout.

#include "packed.h"

using namespace polyphi;

namespace {

// A packed weight, into `to` [outputs inputs].
struct Weight {
    int bits;
    const uint8_t* w;
    const float* row;
    void* to;
    int64_t outputs, inputs;

    int64_t bytes() const { return bits == 4 ? BYTES4 : BYTES8; }  // of a group
};

#define KERNEL "unpack_kernel.h"
#include "paths.h"

}  // namespace

extern "C" {

// A packed weight [outputs inputs] in float32 or bfloat16. See `polyphi_linear` for `isa`, `parallel` and `threads`.
void polyphi_unpack(int isa, int bits, const uint8_t* w, const float* row, void* to, int bf16, int64_t outputs,
                    int64_t inputs, Parallel parallel, int threads) {
    if (isa < 0) isa = best();
    threads = std::max(1, threads);
    const Weight weight{bits, w, row, to, outputs, inputs};
    const auto run = bf16 ? CHOSEN(isa, unpack<uint16_t>) : CHOSEN(isa, unpack<float>);
    const int64_t panels = up(outputs, PANEL), chunk = std::max<int64_t>(1, panels / (8 * threads));
    spread([&](int64_t begin, int64_t end) { run(weight, begin, end); }, panels, chunk, parallel, threads);
}

}  // extern "C"
