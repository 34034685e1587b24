// One token by weights of bfloat16 [n k], which are read in one stream; sums are of floats. A matrix product's kernel
// reads them at two thirds of that rate.

#include "native.h"

using namespace polyphi;

namespace {

#define INLINE inline __attribute__((always_inline))

constexpr int64_t AHEAD = 1024;  // weights that are asked of memory before they are needed

// y [n], float32 or bfloat16, is what stands there times `keep`, and the products times `scale`.
struct Results {
    void* y;
    float keep, scale;
    bool bf16;

    void put(int64_t row, float sum) const {
        if (bf16) {
            uint16_t& place = static_cast<uint16_t*>(y)[row];
            place = to_bf16(keep ? keep * from_bf16(place) + scale * sum : scale * sum);
        } else {
            float& place = static_cast<float*>(y)[row];
            place = keep ? keep * place + scale * sum : scale * sum;
        }
    }
};

namespace scalar {
#define LANES 1
#include "vectors.h"
#include "half_kernel.h"
#undef LANES
}  // namespace scalar

#if POLYPHI_X86

POLYPHI_BEGIN(POLYPHI_AVX512)
namespace avx512 {
#define LANES 16
#include "vectors.h"
#include "half_kernel.h"
#undef LANES
}  // namespace avx512
POLYPHI_END

POLYPHI_BEGIN(POLYPHI_AVX2)
namespace avx2 {
#define LANES 8
#include "vectors.h"
#include "half_kernel.h"
#undef LANES
}  // namespace avx2
POLYPHI_END

#elif POLYPHI_NEON

namespace neon {
#define LANES 4
#include "vectors.h"
#include "half_kernel.h"
#undef LANES
}  // namespace neon

#endif

struct Kernel {
    void (*wide)(const uint16_t*, int64_t, float*);
    void (*rows)(const float*, int64_t, const uint16_t*, const Results&, int64_t, int64_t);
};

Kernel kernel(int isa) {
    switch (isa < 0 ? best() : isa) {
#if POLYPHI_X86
        case AVX512: return {avx512::wide, avx512::rows};
        case AVXVNNI:
        case AVX2: return {avx2::wide, avx2::rows};
#elif POLYPHI_NEON
        case NEON: return {neon::wide, neon::rows};
#endif
        default: return {scalar::wide, scalar::rows};
    }
}

}  // namespace

extern "C" {

// x [k] by w [n k] in bfloat16: y [n] = keep * y + scale * w x, x and y of one type (float32 or bfloat16). See
// `polyphi_linear` for `isa`, `parallel` and `threads`.
void polyphi_half(int isa, const void* x, const uint16_t* w, void* y, int bf16, float keep, float scale, int64_t n,
                  int64_t k, Parallel parallel, int threads) {
    const Kernel own = kernel(isa);
    std::vector<float> wide(bf16 ? k : 0);
    if (bf16) own.wide(static_cast<const uint16_t*>(x), k, wide.data());
    const float* token = bf16 ? wide.data() : static_cast<const float*>(x);
    const Results results{y, keep, scale, bf16 != 0};
    const int64_t chunk = std::max<int64_t>(16, n / (8 * std::max(1, threads)));
    spread([&](int64_t begin, int64_t end) { own.rows(token, k, w, results, begin, end); }, n, chunk, parallel,
           threads);
}

}  // extern "C"
