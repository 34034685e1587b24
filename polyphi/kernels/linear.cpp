// Linear layers with weights of 4, 6 and 8 bits. Activations are quantized to 8 bits with a scale per token and block of
// 64 inputs, before that rotated as the weights were; products and sums of a block are of integers, and weights are read
// from memory once for all tokens. See packed.h for their layout.
//
// Scales of groups take a fifth of the instructions of a product of 4 bits. For the many tokens of a prompt a panel of
// 4 bits is therefore unpacked to int8 first, with a scale per block: normal weights then have an error of 7.11 %
// instead of 7.09.
//
// The kernel (linear_kernel.h) is written once, over the registers of each set of instructions. All paths add the same
// integers; sums of floats have the same order, and differ only by fused multiply-adds.

#include "packed.h"

using namespace polyphi;

namespace {

constexpr int AHEAD = 8192;                     // distance of prefetching in bytes, for few tokens
constexpr int TOKENS = 264;                     // most tokens whose activations stay in the cache
constexpr int64_t NEAR = 1 << 19;               // bytes of int8 panels that are unpacked from 4 bits at once
constexpr int UNPACK_MIN_TOKENS = 128;                       // tokens for which that is faster, more than decode steps have
constexpr int MANY_WORDS = 24;                  // tokens for which int8 weights are unpacked to int16 (AVX2)
constexpr int MANY_TILES = 16;                  // tokens for which AMX is faster
constexpr int TILE = 16;                        // tokens, and outputs, of a tile of AMX
constexpr int EVEN = 12;                        // a multiple of the tokens of a step on every path

// Activations [m, blocks * BLOCK] as integers, with the scale of each token and block. `offset` has for each token and
// group the negative sum of its activations, as 16 bits of 32 (null if the weight doesn't need it); `total` has the sum
// of a token's block. `words` are the same activations in 16 bits, null if they aren't used. `tiles`: AMX multiplies
// them by weights of 8 bits.
struct Tokens {
    const int8_t* a;
    const int16_t* words;
    const float* scale;
    const int32_t* offset;
    const int32_t* total;
    int64_t m, blocks;
    bool tiles;
};

// Memory to prefetch: `lines` cache lines per block, from `at` on.
struct Prefetch {
    const uint8_t* at;
    int lines;
};

// A panel of results, and the index of its part if there are two parts.
struct Place {
    int64_t panel;
    int part;
};

// The product of tokens and a weight, whose sums are scaled by the factors of outputs and by `unit`. `w` and `row` begin
// with panel `first`; those of the second part are `apart` panels further. If panels were unpacked, some at a time,
// `narrow` are the packed panels of the next step.
struct Factor {
    Tokens x;
    int bits;
    const uint8_t* w;
    const float* row;
    float unit;
    int64_t first, apart;
    const Factor* narrow;

    int64_t index(Place place) const { return place.panel - first + place.part * apart; }
    const uint8_t* at(Place place) const { return w + index(place) * panel_bytes(bits, x.blocks); }
    const float* row_at(Place place) const { return row + index(place) * PANEL; }

    // What to prefetch: with a single group of tokens the data that is needed soon; with several `passes`, a part of
    // the next panel during each.
    Prefetch ahead(Place place, int64_t pass, int64_t passes) const {
        if (narrow) return narrow->ahead({place.panel + apart - 1, place.part}, pass, passes);
        const int64_t all = block_bytes(bits) / 64, lines = up(all, passes);
        if (passes == 1) return {at(place) + AHEAD, int(all)};
        place.panel++;
        return {at(place) + pass * x.blocks * lines * 64, pass * lines < all ? int(lines) : 0};
    }
};

// Results y [m, width] in float32 or bfloat16: a product, plus an adapter's product and plus `onto` [m, width] (each
// may be null); or, of two parts, the second one gated by the first. Tokens are processed in shares.
struct Work {
    Factor base;
    const Factor* adapter;
    const void* onto;
    void* y;
    bool bf16;
    int64_t n;
    int parts;
    int64_t share;

    int64_t width() const { return n / parts; }
    int64_t panels() const { return up(width(), PANEL); }
    const uint8_t* at(int64_t token, int64_t panel) const {
        return static_cast<const uint8_t*>(y) + (token * width() + panel * PANEL) * (bf16 ? 2 : 4);
    }
};

// Tokens of a share; at most so many are processed at once.
int64_t share_of(int64_t tokens, int64_t most) { return up(up(tokens, up(tokens, most)), EVEN) * EVEN; }

// ------------------------------------------------------------------ registers

namespace scalar {
#define LANES 1
#include "vectors.h"
constexpr int most_for(int) { return 4; }
constexpr int wide_for(int, int) { return 1; }
constexpr bool OFFSET = false;
using Int = int32_t;
using Real = float;
inline Int zero() { return 0; }
inline Int constant(int32_t value) { return value; }
inline Real float_zero() { return 0; }
inline Int load(const uint8_t* at) { Int found; std::memcpy(&found, at, 4); return found; }
inline Int four(const int8_t* at) { Int found; std::memcpy(&found, at, 4); return found; }
inline Int low(Int pairs) { return pairs & 0x0f0f0f0f; }
inline Int high(Int pairs) { return pairs >> 4 & 0x0f0f0f0f; }
inline Int dot(Int sum, Int w, Int a, int offset) {
    for (int i = 0; i < 32; i += 8) sum += (int(uint8_t(w >> i)) - offset) * int8_t(a >> i);
    return sum;
}
inline Int dot4(Int sum, Int w, Int a) { return dot(sum, w, a, 0); }
inline Int dot6(Int sum, Int w, Int a) { return dot(sum, w, a, 0); }
inline Int dot8(Int sum, Int w, Int a) { return dot(sum, w, a, 128); }
inline Int settled(Int sum, const uint8_t* z, int32_t offset) { return sum * 16 + *z * int16_t(offset); }
inline Real scaled(Int sum, Real s, Real total) { return std::fma(float(sum), s, total); }
inline Real bytes(const uint8_t* at) { return *at; }
inline void store(float* at, Real value) { *at = value; }
inline void prefetch(const uint8_t*) {}
#include "linear_kernel.h"
#undef LANES
}  // namespace scalar

#if POLYPHI_X86

POLYPHI_BEGIN(POLYPHI_AMX)
namespace avx512 {
#define LANES 16
#include "vectors.h"
#define TILES
constexpr int most_for(int) { return 8; }
constexpr int wide_for(int, int) { return 2; }
constexpr bool OFFSET = true;
using Int = __m512i;
using Real = __m512;
inline Int zero() { return _mm512_setzero_si512(); }
inline Int constant(int32_t value) { return _mm512_set1_epi32(value); }
inline Real float_zero() { return _mm512_setzero_ps(); }
inline Int load(const uint8_t* at) { return _mm512_loadu_si512(at); }
inline Int four(const int8_t* at) { int32_t found; std::memcpy(&found, at, 4); return _mm512_set1_epi32(found); }
// Nibbles stay 16 times as large, which saves a shift of the sums.
inline Int low(Int pairs) { return _mm512_and_si512(_mm512_slli_epi16(pairs, 4), _mm512_set1_epi8(-16)); }
inline Int high(Int pairs) { return _mm512_and_si512(pairs, _mm512_set1_epi8(-16)); }
inline Int dot4(Int sum, Int w, Int a) { return _mm512_dpbusd_epi32(sum, w, a); }
inline Int dot6(Int sum, Int w, Int a) { return _mm512_dpbusd_epi32(sum, w, a); }
// For the intrinsic, whose sums have another type, GCC copies every sum with every product.
inline Int dot8(Int sum, Int w, Int a) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));
    return sum;
}
inline Int wide(const uint8_t* at) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at)); }
inline Int settled(Int sum, const uint8_t* z, int32_t offset) {
    return _mm512_dpwssd_epi32(sum, wide(z), _mm512_set1_epi32(offset));
}
inline Real scaled(Int sum, Real s, Real total) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), s, total); }
inline Real bytes(const uint8_t* at) { return _mm512_cvtepi32_ps(wide(at)); }
inline Real loaded(const float* at) { return _mm512_loadu_ps(at); }
inline Int plus(Int sum, Int more) { return _mm512_add_epi32(sum, more); }
inline void prefetch(const uint8_t* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }
#include "linear_kernel.h"
#undef TILES
#undef LANES
}  // namespace avx512
POLYPHI_END

// Registers of 256 bits, with dot products and without.
#define POLYPHI_256                                                                                                    \
    constexpr int wide_for(int tokens, int bits) { return tokens == 1 ? 4 : tokens == 2 || bits == 8 ? 2 : 1; }        \
    using Int = __m256i;                                                                                               \
    using Real = __m256;                                                                                               \
    inline Int zero() { return _mm256_setzero_si256(); }                                                               \
    inline Int constant(int32_t value) { return _mm256_set1_epi32(value); }                                            \
    inline Real float_zero() { return _mm256_setzero_ps(); }                                                           \
    inline Int load(const uint8_t* at) { return _mm256_loadu_si256((const __m256i*)at); }                              \
    inline Int four(const int8_t* at) { int32_t found; std::memcpy(&found, at, 4); return _mm256_set1_epi32(found); }  \
    inline Int low(Int pairs) { return _mm256_and_si256(pairs, _mm256_set1_epi8(15)); }                                \
    inline Int high(Int pairs) { return _mm256_and_si256(_mm256_srli_epi16(pairs, 4), _mm256_set1_epi8(15)); }         \
    inline Int wide(const uint8_t* at) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at)); }           \
    inline Int shifted(Int sum, const uint8_t* z, int32_t offset) {                                                    \
        const Int taken = _mm256_madd_epi16(wide(z), _mm256_set1_epi32(offset));                                       \
        return _mm256_add_epi32(_mm256_slli_epi32(sum, 4), taken);                                                     \
    }                                                                                                                  \
    inline Real real(Int sum) { return _mm256_cvtepi32_ps(sum); }                                                      \
    inline Real scaled(Int sum, Real s, Real total) { return _mm256_fmadd_ps(real(sum), s, total); }                   \
    inline Real bytes(const uint8_t* at) { return real(wide(at)); }                                                    \
    inline void prefetch(const uint8_t* at) { _mm_prefetch((const char*)at, _MM_HINT_T0); }

POLYPHI_BEGIN(POLYPHI_AVXVNNI)
namespace avxvnni {
#define LANES 8
#include "vectors.h"
constexpr int most_for(int) { return 4; }
constexpr bool OFFSET = true;
POLYPHI_256
inline Int dot4(Int sum, Int w, Int a) { return _mm256_dpbusd_avx_epi32(sum, w, a); }
inline Int dot6(Int sum, Int w, Int a) { return _mm256_dpbusd_avx_epi32(sum, w, a); }
inline Int dot8(Int sum, Int w, Int a) {  // see the path of AVX-512
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
    return sum;
}
inline Int settled(Int sum, const uint8_t* z, int32_t offset) { return shifted(sum, z, offset); }
#include "linear_kernel.h"
#undef LANES
}  // namespace avxvnni
POLYPHI_END

POLYPHI_BEGIN(POLYPHI_AVX2)
namespace avx2 {
#define LANES 8
#include "vectors.h"
constexpr int most_for(int) { return 4; }
constexpr bool OFFSET = false;
#define WORDS
POLYPHI_256
// Sums of two products have 16 bits. Those of nibbles fit in 16 bits over a group: 16 * 15 * 127 is 30,480.
inline Int dot4(Int sum, Int w, Int a) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a)); }
inline Int settled(Int sum, const uint8_t* z, int32_t offset) {
    return shifted(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), z, offset);
}
inline Int dot6(Int sum, Int w, Int a) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}
// The sign of the activations is moved to the weights: 2 * 127 * 127 is 32,258.
inline Int dot8(Int sum, Int w, Int a) {
    const Int own = _mm256_sign_epi8(_mm256_xor_si256(w, _mm256_set1_epi8(-128)), a);
    const Int pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), own);
    Int total = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    asm("" : "+x"(total));  // keeps the order: GCC would interleave them, and spill sums to memory
    return total;
}
inline Int dot16(Int sum, Int w, Int a) {
    Int total = _mm256_add_epi32(sum, _mm256_madd_epi16(w, a));
    asm("" : "+x"(total));
    return total;
}
// Of four inputs each of 8 outputs, with 128 added, the first two and the other two in 16 bits.
inline void words(Int fours, Int& first, Int& second) {
    const Int own = _mm256_xor_si256(fours, _mm256_set1_epi8(-128));
    const Int even = _mm256_srai_epi16(_mm256_slli_epi16(own, 8), 8), odd = _mm256_srai_epi16(own, 8);
    first = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
    second = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
}
#include "linear_kernel.h"
#undef WORDS
#undef LANES
}  // namespace avx2
POLYPHI_END

#elif POLYPHI_NEON

// Registers of 128 bits, with dot products.
#define POLYPHI_128                                                                                                     \
    using Int = int32x4_t;                                                                                              \
    using Real = float32x4_t;                                                                                           \
    inline Int zero() { return vdupq_n_s32(0); }                                                                        \
    inline Int constant(int32_t value) { return vdupq_n_s32(value); }                                                   \
    inline Real float_zero() { return vdupq_n_f32(0); }                                                                 \
    inline Int load(const uint8_t* at) { return vreinterpretq_s32_u8(vld1q_u8(at)); }                                   \
    inline Int four(const int8_t* at) { int32_t found; std::memcpy(&found, at, 4); return vdupq_n_s32(found); }         \
    inline Int low(Int pairs) { return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(pairs), vdupq_n_u8(15))); }   \
    inline Int high(Int pairs) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(pairs), 4)); }             \
    inline Int dot4(Int sum, Int w, Int a) { return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a)); } \
    inline Int dot6(Int sum, Int w, Int a) { return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a)); } \
    inline Int wide(const uint8_t* at) {                                                                                \
        uint32_t found;                                                                                                 \
        std::memcpy(&found, at, 4);                                                                                     \
        const uint16x8_t halves = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(found)));                                     \
        return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(halves)));                                                  \
    }                                                                                                                   \
    inline Int settled(Int sum, const uint8_t* z, int32_t offset) {                                                     \
        return vmlaq_n_s32(vshlq_n_s32(sum, 4), wide(z), int16_t(offset));                                              \
    }                                                                                                                   \
    inline Real real(Int sum) { return vcvtq_f32_s32(sum); }                                                            \
    inline Real scaled(Int sum, Real s, Real total) { return vfmaq_f32(total, real(sum), s); }                          \
    inline Real bytes(const uint8_t* at) { return real(wide(at)); }                                                     \
    inline void prefetch(const uint8_t* at) { __builtin_prefetch(at); }

POLYPHI_BEGIN(POLYPHI_DOTPROD)
namespace neon {
#define LANES 4
#include "vectors.h"
constexpr int most_for(int) { return 4; }
constexpr int wide_for(int tokens, int) { return tokens == 1 ? 8 : tokens == 2 ? 4 : 2; }
constexpr bool OFFSET = false;
POLYPHI_128
inline Int dot8(Int sum, Int w, Int a) {
    const int8x16_t own = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(w), vdupq_n_u8(128)));
    return vdotq_s32(sum, own, vreinterpretq_s8_s32(a));
}
#include "linear_kernel.h"
#undef LANES
}  // namespace neon
POLYPHI_END

// Matrix instructions multiply two outputs by two tokens over eight inputs. Weights are unsigned, and the sums are
// corrected by a token's total, as with VNNI. 4 bits use dot products; for many tokens they are unpacked to 8 bits.
POLYPHI_BEGIN(POLYPHI_I8MM)
namespace i8mm {
#define LANES 4
#define MATRIX
#include "vectors.h"
constexpr int most_for(int) { return 6; }
constexpr int wide_for(int tokens, int bits) {
    return tokens == 1 ? 8 : tokens == 2 ? 4 : bits == 8 ? (tokens <= 4 ? 4 : 2) : tokens <= 4 ? 2 : 1;
}
constexpr bool OFFSET = true;
POLYPHI_128
inline Int dot8(Int sum, Int w, Int a) {
    return vusdotq_s32(sum, vreinterpretq_u8_s32(w), vreinterpretq_s8_s32(a));
}
// Eight activations of two tokens each.
inline Int eight(const int8_t* first, const int8_t* second) {
    return vreinterpretq_s32_s8(vcombine_s8(vld1_s8(first), vld1_s8(second)));
}
// Of four inputs of LANES outputs, and the next four inputs: all eight of two outputs, the first or second half.
inline Int outputs(Int inputs, Int next, int half) {
    return half ? vzip2q_s32(inputs, next) : vzip1q_s32(inputs, next);
}
// [output, token] of two each, plus the products of their inputs.
inline Int matrix8(Int sums, Int w, Int a) {
    return vusmmlaq_s32(sums, vreinterpretq_u8_s32(w), vreinterpretq_s8_s32(a));
}
// The sums of LANES outputs by the first or second token.
inline Int of_token(Int sums, Int next, int second) { return second ? vuzp2q_s32(sums, next) : vuzp1q_s32(sums, next); }
#include "linear_kernel.h"
#undef MATRIX
#undef LANES
}  // namespace i8mm
POLYPHI_END

#endif

// The functions of the kernel for each set of instructions.
struct Kernel {
    void (*quantize)(const void*, bool, bool, int64_t, int64_t, int64_t, int8_t*, float*, int32_t*, int32_t*);
    void (*products)(const Work&, int64_t, int64_t);
    bool words;  // whether many tokens by weights of 8 bits are multiplied in 16
    bool tiles;  // or by AMX
};

Kernel kernel(int isa) {
    switch (isa < 0 ? best() : isa) {
#if POLYPHI_X86
        case AVX512: return {avx512::quantize, avx512::products, false, has_amx()};
        case AVXVNNI: return {avxvnni::quantize, avxvnni::products, false, false};
        case AVX2: return {avx2::quantize, avx2::products, true, false};
#elif POLYPHI_NEON
        case I8MM: return {i8mm::quantize, i8mm::products, false, false};
        case NEON: return {neon::quantize, neon::products, false, false};
#endif
        default: return {scalar::quantize, scalar::products, false, false};
    }
}

// The path that computes.
struct Pool {
    Kernel own;
    Parallel parallel;
    int threads;
};

// Memory for activations [m, blocks * BLOCK] in 16 bits, if they are used.
int16_t* words_of(const Pool& pool, int bits, int64_t m, int64_t blocks) {
    return pool.own.words && bits == 8 && m >= MANY_WORDS ? new int16_t[m * blocks * BLOCK] : nullptr;
}

// Whether AMX multiplies activations by weights of 8 bits.
bool by_tiles(const Pool& pool, int64_t m) { return pool.own.tiles && m >= MANY_TILES; }

// Memory for activations [m, blocks * BLOCK] in 8 bits. Tiles read whole ones, past the last token.
int8_t* bytes_of(const Pool& pool, int64_t m, int64_t blocks) {
    return new int8_t[(by_tiles(pool, m) ? m + 2 * TILE : m) * blocks * BLOCK];
}

// Converts activations of tokens `begin` to `end` to 16 bits (null `to`: does nothing).
void widen(const int8_t* a, int16_t* to, int64_t begin, int64_t end, int64_t stride) {
    if (to)
        for (int64_t i = begin * stride; i < end * stride; i++) to[i] = a[i];
}

// Quantizes activations [m k] for a weight of `bits`, rotated or not; with the sums of groups for 4 bits.
struct Rounded {
    const int64_t blocks;
    const std::unique_ptr<int8_t[]> a;
    const std::unique_ptr<int16_t[]> words;
    const std::unique_ptr<float[]> scale;
    const std::unique_ptr<int32_t[]> offset, total;
    const Tokens tokens;

    Rounded(const Pool& pool, const void* x, bool bf16, int64_t m, int64_t k, int bits, bool rotated)
        : blocks(up(k, BLOCK)), a(bytes_of(pool, m, blocks)), words(words_of(pool, bits, m, blocks)),
          scale(new float[m * blocks]), offset(bits == 4 ? new int32_t[m * blocks * 2] : nullptr),
          total(new int32_t[m * blocks]),
          tokens{a.get(), words.get(), scale.get(), offset.get(), total.get(), m, blocks, by_tiles(pool, m)} {
        const auto work = [&](int64_t begin, int64_t end) {
            pool.own.quantize(x, bf16, rotated, begin, end, k, a.get(), scale.get(), offset.get(), total.get());
            widen(a.get(), words.get(), begin, end, blocks * BLOCK);
        };
        spread(work, m, std::max<int64_t>(16, up(m, 4 * pool.threads)), pool.parallel, pool.threads);
    }
};

// The same for quantized activations: bytes q + 128 [m k] with a scale per row.
struct RoundedRows {
    const int64_t blocks;
    const std::unique_ptr<int8_t[]> a;
    const std::unique_ptr<int16_t[]> words;
    const std::unique_ptr<float[]> scale;
    const std::unique_ptr<int32_t[]> total;
    const Tokens tokens;

    RoundedRows(const Pool& pool, const uint8_t* q, const float* row_scale, int64_t m, int64_t k)
        : blocks(up(k, BLOCK)), a(bytes_of(pool, m, blocks)), words(words_of(pool, 8, m, blocks)),
          scale(new float[m * blocks]), total(new int32_t[m * blocks]),
          tokens{a.get(), words.get(), scale.get(), nullptr, total.get(), m, blocks, by_tiles(pool, m)} {
        const int64_t stride = blocks * BLOCK;
        const auto work = [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) {
                int8_t* to = a.get() + t * stride;
                for (int64_t i = 0; i < k; i++) to[i] = int8_t(q[t * k + i] ^ 128);
                std::memset(to + k, 0, size_t(stride - k));
                for (int64_t b = 0; b < blocks; b++) {
                    int32_t sum = 0;
                    for (int i = 0; i < BLOCK; i++) sum += to[b * BLOCK + i];
                    total[t * blocks + b] = sum;
                    scale[t * blocks + b] = row_scale[t];
                }
            }
            widen(a.get(), words.get(), begin, end, stride);
        };
        spread(work, m, std::max<int64_t>(16, up(m, 4 * pool.threads)), pool.parallel, pool.threads);
    }
};

// All panels; a thread processes some at a time.
void run(const Pool& pool, Work work) {
    work.share = share_of(work.base.x.m, TOKENS);
    const auto some = [&](int64_t begin, int64_t end) { pool.own.products(work, begin, end); };
    const int64_t chunk = std::max<int64_t>(1, work.panels() / (8 * pool.threads));
    spread(some, work.panels(), chunk, pool.parallel, pool.threads);
}

}  // namespace

extern "C" {

// Limits the paths to this value of `Isa`, and products of bfloat16 and AMX to `bf16` and `amx`.
void polyphi_limit(int isa, int bf16, int amx) { limit = {isa, bf16 != 0, amx != 0}; }

// Whether AMX multiplies many tokens by weights of 8 bits.
int polyphi_amx() { return has_amx(); }

// The best value of `Isa`, and whether this CPU has the instructions of one.
int polyphi_isa() { return best(); }
int polyphi_has(int isa) { return has(isa); }

// The product of activations x [m k], float32 or bfloat16, and a weight of `bits` bits, whose inputs are `rotated` or
// not, plus `onto` (or null), into y [m n] of the same type; with `gate` into y [m n/2], the second half times silu of
// the first, each of whole panels. A rotated int8 adapter (or nulls), a [rank k] and b [n rank], adds `scale` times its
// product. `isa` must be supported (`polyphi_has`; -1: the best); `parallel` runs it in `threads` threads (null: in new
// threads).
void polyphi_linear(int isa, int bits, int rotated, const void* x, const uint8_t* w, const float* row, const void* onto,
                    void* y, int bf16, int gate, int64_t m, int64_t n, int64_t k, const uint8_t* a, const float* a_row,
                    const uint8_t* b, const float* b_row, int64_t rank, float scale, Parallel parallel, int threads) {
    const Pool pool{kernel(isa), parallel, std::max(1, threads)};
    const Rounded rounded(pool, x, bf16 != 0, m, k, bits, rotated != 0);
    const int parts = gate ? 2 : 1;
    const int64_t apart = n / 2 / PANEL;
    const Factor base{rounded.tokens, bits, w, row, bits == 4 ? 1.0f / 16 : 1.0f, 0, apart, nullptr};
    Work work{base, nullptr, onto, y, bf16 != 0, n, parts, 0};
    if (!a) return run(pool, work);
    const std::unique_ptr<float[]> low(new float[m * rank]);
    const std::unique_ptr<Rounded> other(rotated ? nullptr : new Rounded(pool, x, bf16 != 0, m, k, 8, true));
    const Factor squeeze{(other ? *other : rounded).tokens, 8, a, a_row, 1.0f, 0, 0, nullptr};
    run(pool, {squeeze, nullptr, nullptr, low.get(), false, rank, 1, 0});
    const Rounded squeezed(pool, low.get(), false, m, rank, 8, true);
    const Factor adapter{squeezed.tokens, 8, b, b_row, scale, 0, apart, nullptr};
    work.adapter = &adapter;
    run(pool, work);
}

// The product of quantized activations, bytes q + 128 [m k] with a `scale` per row, and a weight of 8 bits that isn't
// rotated, to y [m n] in bfloat16.
void polyphi_linear_rows(int isa, const uint8_t* q, const float* scale, const uint8_t* w, const float* row, void* y,
                         int64_t m, int64_t n, int64_t k, Parallel parallel, int threads) {
    const Pool pool{kernel(isa), parallel, std::max(1, threads)};
    const RoundedRows rows(pool, q, scale, m, k);
    const Factor base{rows.tokens, 8, w, row, 1.0f, 0, n / 2 / PANEL, nullptr};
    run(pool, {base, nullptr, nullptr, y, true, n, 1, 0});
}

}  // extern "C"
