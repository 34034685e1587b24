// Weights of 4, 6 and 8 bits as numbers: for products with the transposed weight, which training needs. See packed.h for
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

    int64_t blocks() const { return up(inputs, BLOCK); }
};

// The levels of an output in a block: q of 4 bits, u of the others.
void levels(int bits, const uint8_t* block, int o, uint8_t* to) {
    for (int quad = 0; quad < BLOCK / QUAD; quad++, to += QUAD) {
        if (bits == 8) {
            std::memcpy(to, block + (quad * PANEL + o) * QUAD, QUAD);
            continue;
        }
        const int half = quad / 8, high = quad % 8 / 4, j = quad % 4;
        const uint8_t* pairs = block + half * (bits == 4 ? BYTES4 : NIBBLES) + (j * PANEL + o) * QUAD;
        const uint8_t* twos = block + 2 * NIBBLES + half * NIBBLES / 2 + (high * PANEL + o) * QUAD;
        for (int i = 0; i < QUAD; i++)
            to[i] = uint8_t((pairs[i] >> 4 * high & 15) | (bits == 6 ? (twos[i] >> 2 * j & 3) << 4 : 0));
    }
}

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
