// Linear layers with weights of 4 and 8 bits. Activations are quantised to 8 bits per token, products and sums are of
// integers, and weights are read from memory once for all tokens.
//
// 4 bits: a weight is row * s * (q - z / 16), with q from 0 to 15; s and z are a byte each for an output and a group of 32
// inputs, row is a float of the output. Weights lie in panels of 32 outputs, and in a panel group after group, 576 bytes
// each, read in one stream: 512 bytes of nibbles, 32 s, 32 z. Of the nibbles, part j (of 4) is 128 bytes, 4 for each
// output: low ones hold the inputs 4j..4j+3, high ones 16+4j..16+4j+3, so that 32 bits are four consecutive inputs of one
// output, as dot-product instructions want it.
//
// 8 bits: a weight is row * (u - 128), with u from 1 to 255. In a panel come four inputs after the other: 128 bytes, 4 for
// each output.
//
// The kernel (linear_kernel.h) is written once, over what each set of instructions calls a register. All add the same
// integers; sums of floats are made in the same order, and differ by fused multiply-adds alone.

#include "native.h"

using namespace polyphi;

namespace {

#define INLINE inline __attribute__((always_inline))

constexpr int GROUP = 32;                       // inputs with one scale, and what inputs are padded to
constexpr int QUAD = 4;                         // inputs of one output in 32 bits
constexpr int PANEL = 32;                       // outputs side by side
constexpr int NIBBLES = PANEL * GROUP / 2;     // bytes before a group's s
constexpr int BYTES4 = NIBBLES + 2 * PANEL;    // of a group: nibbles, s, z
constexpr int BYTES8 = PANEL * QUAD;           // of four inputs
constexpr int AHEAD = 8;                        // groups that are asked of memory before they are needed
constexpr int TOKENS = 264;                     // whose activations are kept near while weights pass, at most

int64_t up(int64_t count, int64_t to) { return (count + to - 1) / to; }

// Activations [m, groups * GROUP] as integers. `minus` has for each token and group the negative sum of its activations,
// as 16 bits of 32; `total` a token's sum.
struct Tokens {
    const int8_t* a;
    const float* scale;
    const int32_t* minus;
    const int32_t* total;
    int64_t m, groups;
};

// Where the results [m n] go, in float32 or bfloat16: with a bias (or null), onto what is there already where `add`.
struct Results {
    void* y;
    const float* row;
    const float* bias;
    int64_t n;
    float unit;  // of the sums
    bool bf16, add;

    const uint8_t* at(int64_t token, int64_t output) const {
        return static_cast<const uint8_t*>(y) + (token * n + output) * (bf16 ? 2 : 4);
    }
};

// ------------------------------------------------------------------ registers

namespace scalar {
#define LANES 1
#include "vectors.h"
constexpr int MOST = 4;
constexpr int wide_for(int, int) { return 1; }
constexpr bool OFFSET = false;
using Int = int32_t;
using Real = float;
inline Int zero() { return 0; }
inline Real nothing() { return 0; }
inline Int load(const uint8_t* at) { Int found; std::memcpy(&found, at, 4); return found; }
inline Int four(const int8_t* at) { Int found; std::memcpy(&found, at, 4); return found; }
inline Int low(Int pairs) { return pairs & 0x0f0f0f0f; }
inline Int high(Int pairs) { return pairs >> 4 & 0x0f0f0f0f; }
inline Int dot(Int sum, Int w, Int a, int offset) {
    for (int i = 0; i < 32; i += 8) sum += (int(uint8_t(w >> i)) - offset) * int8_t(a >> i);
    return sum;
}
inline Int dot4(Int sum, Int w, Int a) { return dot(sum, w, a, 0); }
inline Int dot8(Int sum, Int w, Int a) { return dot(sum, w, a, 128); }
inline Int settled(Int sum, const uint8_t* z, int32_t minus) { return sum * 16 + *z * int16_t(minus); }
inline Real scaled(Int sum, Real s, Real total) { return std::fma(float(sum), s, total); }
inline Real bytes(const uint8_t* at) { return *at; }
inline Real real(Int sum) { return float(sum); }
inline Int plus(Int sum, int32_t more) { return sum + more; }
inline void store(float* at, Real value) { *at = value; }
inline void ask(const uint8_t*) {}
#include "linear_kernel.h"
#undef LANES
}  // namespace scalar

#if POLYPHI_X86

POLYPHI_BEGIN(POLYPHI_AVX512)
namespace avx512 {
#define LANES 16
#include "vectors.h"
constexpr int MOST = 6;
constexpr int wide_for(int, int) { return 2; }
constexpr bool OFFSET = true;
using Int = __m512i;
using Real = __m512;
inline Int zero() { return _mm512_setzero_si512(); }
inline Real nothing() { return _mm512_setzero_ps(); }
inline Int load(const uint8_t* at) { return _mm512_loadu_si512(at); }
inline Int four(const int8_t* at) { int32_t found; std::memcpy(&found, at, 4); return _mm512_set1_epi32(found); }
// Nibbles stay 16 times as large, which spares a shift of the sums.
inline Int low(Int pairs) { return _mm512_and_si512(_mm512_slli_epi16(pairs, 4), _mm512_set1_epi8(-16)); }
inline Int high(Int pairs) { return _mm512_and_si512(pairs, _mm512_set1_epi8(-16)); }
inline Int dot4(Int sum, Int w, Int a) { return _mm512_dpbusd_epi32(sum, w, a); }
inline Int dot8(Int sum, Int w, Int a) { return _mm512_dpbusd_epi32(sum, w, a); }
inline Int wide(const uint8_t* at) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at)); }
inline Int settled(Int sum, const uint8_t* z, int32_t minus) {
    return _mm512_dpwssd_epi32(sum, wide(z), _mm512_set1_epi32(minus));
}
inline Real scaled(Int sum, Real s, Real total) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), s, total); }
inline Real bytes(const uint8_t* at) { return _mm512_cvtepi32_ps(wide(at)); }
inline Real real(Int sum) { return _mm512_cvtepi32_ps(sum); }
inline Int plus(Int sum, int32_t more) { return _mm512_add_epi32(sum, _mm512_set1_epi32(more)); }
inline void ask(const uint8_t* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }
#include "linear_kernel.h"
#undef LANES
}  // namespace avx512
POLYPHI_END

// Registers of 256 bits, with dot products and without.
#define POLYPHI_256                                                                                                   \
    constexpr int MOST = 4;                                                                                           \
    constexpr int wide_for(int tokens, int bits) { return tokens == 1 ? 4 : tokens == 2 || bits == 8 ? 2 : 1; }       \
    using Int = __m256i;                                                                                              \
    using Real = __m256;                                                                                              \
    inline Int zero() { return _mm256_setzero_si256(); }                                                              \
    inline Real nothing() { return _mm256_setzero_ps(); }                                                             \
    inline Int load(const uint8_t* at) { return _mm256_loadu_si256((const __m256i*)at); }                             \
    inline Int four(const int8_t* at) { int32_t found; std::memcpy(&found, at, 4); return _mm256_set1_epi32(found); } \
    inline Int low(Int pairs) { return _mm256_and_si256(pairs, _mm256_set1_epi8(15)); }                               \
    inline Int high(Int pairs) { return _mm256_and_si256(_mm256_srli_epi16(pairs, 4), _mm256_set1_epi8(15)); }        \
    inline Int wide(const uint8_t* at) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at)); }          \
    inline Int shifted(Int sum, const uint8_t* z, int32_t minus) {                                                    \
        const Int taken = _mm256_madd_epi16(wide(z), _mm256_set1_epi32(minus));                                       \
        return _mm256_add_epi32(_mm256_slli_epi32(sum, 4), taken);                                                    \
    }                                                                                                                 \
    inline Real real(Int sum) { return _mm256_cvtepi32_ps(sum); }                                                     \
    inline Real scaled(Int sum, Real s, Real total) { return _mm256_fmadd_ps(real(sum), s, total); }                  \
    inline Real bytes(const uint8_t* at) { return real(wide(at)); }                                                   \
    inline Int plus(Int sum, int32_t more) { return _mm256_add_epi32(sum, _mm256_set1_epi32(more)); }                 \
    inline void ask(const uint8_t* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }

POLYPHI_BEGIN(POLYPHI_AVXVNNI)
namespace avxvnni {
#define LANES 8
#include "vectors.h"
constexpr bool OFFSET = true;
POLYPHI_256
inline Int dot4(Int sum, Int w, Int a) { return _mm256_dpbusd_avx_epi32(sum, w, a); }
inline Int dot8(Int sum, Int w, Int a) { return _mm256_dpbusd_avx_epi32(sum, w, a); }
inline Int settled(Int sum, const uint8_t* z, int32_t minus) { return shifted(sum, z, minus); }
#include "linear_kernel.h"
#undef LANES
}  // namespace avxvnni
POLYPHI_END

POLYPHI_BEGIN(POLYPHI_AVX2)
namespace avx2 {
#define LANES 8
#include "vectors.h"
constexpr bool OFFSET = false;
POLYPHI_256
// Sums of two products are of 16 bits. Those of nibbles stay so through a group: 16 * 15 * 127 is 30,480.
inline Int dot4(Int sum, Int w, Int a) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a)); }
inline Int settled(Int sum, const uint8_t* z, int32_t minus) {
    return shifted(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), z, minus);
}
// Weights take the sign of the activations, which lose theirs: 2 * 127 * 127 is 32,258.
inline Int dot8(Int sum, Int w, Int a) {
    const Int own = _mm256_sign_epi8(_mm256_xor_si256(w, _mm256_set1_epi8(-128)), a);
    const Int pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), own);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#include "linear_kernel.h"
#undef LANES
}  // namespace avx2
POLYPHI_END

#elif POLYPHI_NEON

POLYPHI_BEGIN(POLYPHI_DOTPROD)
namespace neon {
#define LANES 4
#include "vectors.h"
constexpr int MOST = 4;
constexpr int wide_for(int tokens, int) { return tokens == 1 ? 8 : tokens == 2 ? 4 : 2; }
constexpr bool OFFSET = false;
using Int = int32x4_t;
using Real = float32x4_t;
inline Int zero() { return vdupq_n_s32(0); }
inline Real nothing() { return vdupq_n_f32(0); }
inline Int load(const uint8_t* at) { return vreinterpretq_s32_u8(vld1q_u8(at)); }
inline Int four(const int8_t* at) { int32_t found; std::memcpy(&found, at, 4); return vdupq_n_s32(found); }
inline Int low(Int pairs) { return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(pairs), vdupq_n_u8(15))); }
inline Int high(Int pairs) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(pairs), 4)); }
inline Int dot4(Int sum, Int w, Int a) { return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a)); }
inline Int dot8(Int sum, Int w, Int a) {
    const int8x16_t own = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(w), vdupq_n_u8(128)));
    return vdotq_s32(sum, own, vreinterpretq_s8_s32(a));
}
inline Int wide(const uint8_t* at) {
    uint32_t found;
    std::memcpy(&found, at, 4);
    const uint16x8_t halves = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(found)));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(halves)));
}
inline Int settled(Int sum, const uint8_t* z, int32_t minus) {
    return vmlaq_n_s32(vshlq_n_s32(sum, 4), wide(z), int16_t(minus));
}
inline Real real(Int sum) { return vcvtq_f32_s32(sum); }
inline Real scaled(Int sum, Real s, Real total) { return vfmaq_f32(total, real(sum), s); }
inline Real bytes(const uint8_t* at) { return real(wide(at)); }
inline Int plus(Int sum, int32_t more) { return vaddq_s32(sum, vdupq_n_s32(more)); }
inline void ask(const uint8_t* at) { __builtin_prefetch(at); }
#include "linear_kernel.h"
#undef LANES
}  // namespace neon
POLYPHI_END

#endif

// What each set of instructions has of the kernel.
struct Kernel {
    void (*quantise)(const void*, bool, int64_t, int64_t, int64_t, int8_t*, float*, int32_t*, int32_t*);
    void (*panels4)(const Tokens&, const Results&, const uint8_t*, int64_t, int64_t);
    void (*panels8)(const Tokens&, const Results&, const uint8_t*, int64_t, int64_t);
};

Kernel kernel(int isa) {
    switch (isa < 0 ? best() : isa) {
#if POLYPHI_X86
        case AVX512: return {avx512::quantise, avx512::panels4, avx512::panels8};
        case AVXVNNI: return {avxvnni::quantise, avxvnni::panels4, avxvnni::panels8};
        case AVX2: return {avx2::quantise, avx2::panels4, avx2::panels8};
#elif POLYPHI_NEON
        case NEON: return {neon::quantise, neon::panels4, neon::panels8};
#endif
        default: return {scalar::quantise, scalar::panels4, scalar::panels8};
    }
}

}  // namespace

extern "C" {

// A place in `Isa`.
int polyphi_isa() { return best(); }

// Activations x [m k], float32 or bfloat16, by weights of so many bits, times `scale`; into y [m n] of the same type, or
// where `add` added to it, with a bias (or null). `isa` is at most `polyphi_isa`'s (-1: that); `parallel` runs it in
// `threads` threads (null: threads of its own).
void polyphi_linear(int isa, int bits, const void* x, const uint8_t* w, const float* row, const float* bias, void* y,
                    int bf16, int add, float scale, int64_t m, int64_t n, int64_t k, Parallel parallel, int threads) {
    const Kernel own = kernel(isa);
    const int64_t groups = up(k, GROUP), padded = groups * GROUP;
    std::vector<int8_t> a(m * padded);
    std::vector<float> step(m);
    std::vector<int32_t> minus(m * groups), total(m);
    const Tokens tokens{a.data(), step.data(), minus.data(), total.data(), m, groups};
    spread(
        [&](int64_t begin, int64_t end) {
            own.quantise(x, bf16 != 0, begin, end, k, a.data(), step.data(), minus.data(), total.data());
        },
        m, std::max<int64_t>(16, up(m, 4 * std::max(1, threads))), parallel, threads);
    const Results results{y, row, bias, n, bits == 4 ? scale / 16 : scale, bf16 != 0, add != 0};
    const int64_t panels = up(n, PANEL);
    const int64_t chunk = std::max<int64_t>(1, panels / (8 * std::max(1, threads)));
    const auto products = bits == 4 ? own.panels4 : own.panels8;
    spread([&](int64_t begin, int64_t end) { products(tokens, results, w, begin, end); }, panels, chunk, parallel,
           threads);
}

}  // extern "C"
