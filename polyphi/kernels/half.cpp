// One token by weights of bfloat16 [n k], which are read in one stream; sums are of floats. A matrix product's kernel
// reads them at two thirds of that rate.
//
// Activations are sorted first: of each 2 * LANES inputs the even ones, then the odd ones, as a register of weights is
// taken apart; what is left at the end stays in order.

#include "native.h"

using namespace polyphi;

namespace {

constexpr int64_t AHEAD = 2048;  // bytes of weights that are asked of memory before they are needed

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
constexpr int LANES = 1;
using Real = float;
using Halves = uint32_t;
inline Real nothing() { return 0; }
inline Halves load(const uint16_t* at) { Halves found; std::memcpy(&found, at, 4); return found; }
inline Real even(Halves pair) { return from_bf16(uint16_t(pair)); }
inline Real odd(Halves pair) { return from_bf16(uint16_t(pair >> 16)); }
inline Real real(const float* at) { return *at; }
inline Real fused(Real a, Real b, Real sum) { return std::fma(a, b, sum); }
inline float all(Real sum) { return sum; }
inline void ask(const uint16_t*) {}
#include "half_kernel.h"
}  // namespace scalar

#if POLYPHI_X86

POLYPHI_BEGIN(POLYPHI_AVX512)
namespace avx512 {
constexpr int LANES = 16;
using Real = __m512;
using Halves = __m512i;
inline Real nothing() { return _mm512_setzero_ps(); }
inline Halves load(const uint16_t* at) { return _mm512_loadu_si512(at); }
inline Real even(Halves pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline Real odd(Halves pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536))); }
inline Real real(const float* at) { return _mm512_loadu_ps(at); }
inline Real fused(Real a, Real b, Real sum) { return _mm512_fmadd_ps(a, b, sum); }
inline float all(Real sum) { return _mm512_reduce_add_ps(sum); }
inline void ask(const uint16_t* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }
#include "half_kernel.h"
}  // namespace avx512
POLYPHI_END

POLYPHI_BEGIN(POLYPHI_AVX2)
namespace avx2 {
constexpr int LANES = 8;
using Real = __m256;
using Halves = __m256i;
inline Real nothing() { return _mm256_setzero_ps(); }
inline Halves load(const uint16_t* at) { return _mm256_loadu_si256((const __m256i*)at); }
inline Real even(Halves pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline Real odd(Halves pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536))); }
inline Real real(const float* at) { return _mm256_loadu_ps(at); }
inline Real fused(Real a, Real b, Real sum) { return _mm256_fmadd_ps(a, b, sum); }
inline float all(Real sum) {
    float each[8];
    _mm256_storeu_ps(each, sum);
    return ((each[0] + each[4]) + (each[2] + each[6])) + ((each[1] + each[5]) + (each[3] + each[7]));
}
inline void ask(const uint16_t* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }
#include "half_kernel.h"
}  // namespace avx2
POLYPHI_END

#elif POLYPHI_NEON

POLYPHI_BEGIN(POLYPHI_DOTPROD)
namespace neon {
constexpr int LANES = 4;
using Real = float32x4_t;
using Halves = uint32x4_t;
inline Real nothing() { return vdupq_n_f32(0); }
inline Halves load(const uint16_t* at) { return vreinterpretq_u32_u16(vld1q_u16(at)); }
inline Real even(Halves pairs) { return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)); }
inline Real odd(Halves pairs) { return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000))); }
inline Real real(const float* at) { return vld1q_f32(at); }
inline Real fused(Real a, Real b, Real sum) { return vfmaq_f32(sum, a, b); }
inline float all(Real sum) { return vaddvq_f32(sum); }
inline void ask(const uint16_t* at) { __builtin_prefetch(at); }
#include "half_kernel.h"
}  // namespace neon
POLYPHI_END

#endif

struct Kernel {
    void (*sorted)(const void*, bool, int64_t, float*);
    void (*rows)(const float*, int64_t, const uint16_t*, const Results&, int64_t, int64_t);
};

Kernel kernel(int isa) {
    switch (isa < 0 ? best() : isa) {
#if POLYPHI_X86
        case AVX512: return {avx512::sorted, avx512::rows};
        case AVXVNNI:
        case AVX2: return {avx2::sorted, avx2::rows};
#elif POLYPHI_NEON
        case NEON: return {neon::sorted, neon::rows};
#endif
        default: return {scalar::sorted, scalar::rows};
    }
}

}  // namespace

extern "C" {

// x [k] by w [n k] in bfloat16: y [n] = keep * y + scale * w x, x and y of one type (float32 or bfloat16). See
// `polyphi_linear` for `isa`, `parallel` and `threads`.
void polyphi_half(int isa, const void* x, const uint16_t* w, void* y, int bf16, float keep, float scale, int64_t n,
                  int64_t k, Parallel parallel, int threads) {
    const Kernel own = kernel(isa);
    std::vector<float> sorted(k);
    own.sorted(x, bf16 != 0, k, sorted.data());
    const Results results{y, keep, scale, bf16 != 0};
    const int64_t chunk = std::max<int64_t>(16, n / (8 * std::max(1, threads)));
    spread([&](int64_t begin, int64_t end) { own.rows(sorted.data(), k, w, results, begin, end); }, n, chunk, parallel,
           threads);
}

}  // extern "C"
