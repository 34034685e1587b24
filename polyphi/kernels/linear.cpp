// Linear layers with weights of 4 bits: activations are quantised to 8 bits per token, products and sums are of
// integers within a group of 32 inputs, and weights are read from memory once for all tokens.
//
// A weight is (q - 8) * scale + zero, with q from 0 to 15 and a bfloat16 pair (scale, zero) for each output and group.
// Weights lie in panels of 16 outputs, and in a panel group after group, 320 bytes each, read in one stream: 256 bytes of
// nibbles, 16 scales, 16 zeros. Of the nibbles, vector j (of 4) is 64 bytes, 4 for each output: low ones hold the inputs
// 4j..4j+3, high ones 16+4j..16+4j+3, so that 32 bits are four consecutive inputs of one output, as dot-product
// instructions want it.
//
// All paths add the same integers; sums of floats are made in the same order, and differ by fused multiply-adds alone.

#include "native.h"

using namespace polyphi;

namespace {

constexpr int PANEL = 16;                    // outputs side by side
constexpr int GROUP = 32;                    // inputs with one scale
constexpr int QUAD = 4;                      // inputs of one output in 32 bits
constexpr int SCALES = PANEL * GROUP / 2;    // bytes before a group's scales
constexpr int ZEROS = SCALES + PANEL * 2;    // and before its zeros
constexpr int BYTES = ZEROS + PANEL * 2;     // of a group
constexpr int AHEAD = 16;                    // groups that are asked of memory before they are needed
constexpr int TOKENS = 8;                    // whose sums are in registers together
constexpr int CHUNK = 4;                     // panels that a thread takes at a time, at least

// Tokens [m k] by weights [n k] to y [m n]. Of each token and group `start` is -8 times the sum of its activations, with
// which integer sums begin, and `sum` the sum itself.
struct Work {
    const int8_t* a;
    const float* scale;
    const int32_t* start;
    const float* sum;
    const uint8_t* w;
    void* y;
    int64_t m, n, k;
    bool bf16;

    int64_t groups() const { return k / GROUP; }
    const uint8_t* panel(int64_t index) const { return w + index * groups() * BYTES; }
};

void store(const Work& work, int64_t token, int64_t panel, const float* values) {
    const int64_t at = token * work.n + panel * PANEL;
    for (int r = 0; r < PANEL; r++) {
        if (work.bf16)
            static_cast<uint16_t*>(work.y)[at + r] = to_bf16(values[r]);
        else
            static_cast<float*>(work.y)[at + r] = values[r];
    }
}

// ------------------------------------------------------------------ the reference

void panel_scalar(const Work& work, int64_t panel, int64_t token) {
    const int64_t groups = work.groups();
    const int8_t* a = work.a + token * work.k;
    float total[PANEL] = {};
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t* group = work.panel(panel) + g * BYTES;
        for (int r = 0; r < PANEL; r++) {
            int32_t dot = work.start[token * groups + g];
            for (int i = 0; i < GROUP / 2; i++) {
                const uint8_t pair = group[i / QUAD * 64 + r * QUAD + i % QUAD];
                dot += (pair & 15) * a[g * GROUP + i] + (pair >> 4) * a[g * GROUP + GROUP / 2 + i];
            }
            uint16_t scale, zero;
            std::memcpy(&scale, group + SCALES + r * 2, 2);
            std::memcpy(&zero, group + ZEROS + r * 2, 2);
            total[r] = std::fma(float(dot), from_bf16(scale), total[r]);
            total[r] = std::fma(from_bf16(zero), work.sum[token * groups + g], total[r]);
        }
    }
    for (float& value : total) value *= work.scale[token];
    store(work, token, panel, total);
}

#if POLYPHI_X86

// ------------------------------------------------------------------ AVX-512 with VNNI

WITH_AVX512 inline __m512 bf16_512(const void* at) {
    const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

WITH_AVX512 inline void store_512(const Work& work, int64_t token, int64_t panel, __m512 value) {
    const int64_t at = token * work.n + panel * PANEL;
    if (!work.bf16) {
        _mm512_storeu_ps(static_cast<float*>(work.y) + at, value);
        return;
    }
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 none = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, none, bits, _mm512_set1_epi32(64 << 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(work.y) + at),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

WITH_AVX512 inline __m512i four_512(const int8_t* a) {
    int32_t four;
    std::memcpy(&four, a, 4);
    return _mm512_set1_epi32(four);
}

template <int T>
WITH_AVX512 void panel_avx512(const Work& work, int64_t panel, int64_t token) {
    const int64_t groups = work.groups();
    const uint8_t* group = work.panel(panel);
    const int8_t* a = work.a + token * work.k;
    const int32_t* start = work.start + token * groups;
    const float* sum = work.sum + token * groups;
    const __m512i low = _mm512_set1_epi8(15);
    __m512 total[T];
    for (int t = 0; t < T; t++) total[t] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, group += BYTES) {
        for (int line = 0; line < BYTES; line += 64)
            _mm_prefetch(reinterpret_cast<const char*>(group) + AHEAD * BYTES + line, _MM_HINT_T0);
        __m512i w[8];
        for (int j = 0; j < 4; j++) {
            const __m512i pair = _mm512_loadu_si512(group + j * 64);
            w[j] = _mm512_and_si512(pair, low);
            w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
        }
        const __m512 scale = bf16_512(group + SCALES), zero = bf16_512(group + ZEROS);
        for (int t = 0; t < T; t++) {
            const int8_t* at = a + t * work.k + g * GROUP;
            __m512i even = _mm512_set1_epi32(start[t * groups + g]), odd = _mm512_setzero_si512();
            for (int j = 0; j < 8; j += 2) {
                even = _mm512_dpbusd_epi32(even, w[j], four_512(at + j * QUAD));
                odd = _mm512_dpbusd_epi32(odd, w[j + 1], four_512(at + (j + 1) * QUAD));
            }
            total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)), scale, total[t]);
            total[t] = _mm512_fmadd_ps(zero, _mm512_set1_ps(sum[t * groups + g]), total[t]);
        }
    }
    for (int t = 0; t < T; t++)
        store_512(work, token + t, panel, _mm512_mul_ps(total[t], _mm512_set1_ps(work.scale[token + t])));
}

template <int... T>
void panel_avx512_all(const Work& work, int64_t panel, std::integer_sequence<int, T...>) {
    using Kernel = void (*)(const Work&, int64_t, int64_t);
    static constexpr Kernel kernels[] = {panel_avx512<T + 1>...};
    constexpr int64_t most = sizeof...(T);
    for (int64_t first = 0; first < work.m; first += most)
        kernels[std::min(most, work.m - first) - 1](work, panel, first);
}

// ------------------------------------------------------------------ AVX2

WITH_AVX2 inline __m256 bf16_256(const void* at) {
    const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// Sums of two products fit 16 bits: 2 * 15 * 127.
WITH_AVX2 void panel_avx2(const Work& work, int64_t panel, int64_t token) {
    const int64_t groups = work.groups();
    const uint8_t* group = work.panel(panel);
    const int8_t* a = work.a + token * work.k;
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t g = 0; g < groups; g++, group += BYTES) {
        const int64_t place = token * groups + g;
        for (int half = 0; half < 2; half++) {
            __m256i dot = _mm256_set1_epi32(work.start[place]);
            for (int j = 0; j < 4; j++) {
                int32_t first, second;
                std::memcpy(&first, a + g * GROUP + j * QUAD, 4);
                std::memcpy(&second, a + g * GROUP + GROUP / 2 + j * QUAD, 4);
                const __m256i pair = _mm256_loadu_si256(
                    reinterpret_cast<const __m256i*>(group + j * 64 + half * 32));
                const __m256i p0 = _mm256_maddubs_epi16(_mm256_and_si256(pair, low), _mm256_set1_epi32(first));
                const __m256i p1 = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(pair, 4), low),
                                                        _mm256_set1_epi32(second));
                dot = _mm256_add_epi32(dot, _mm256_madd_epi16(_mm256_add_epi16(p0, p1), ones));
            }
            const uint8_t *scales = group + SCALES + half * PANEL, *zeros = group + ZEROS + half * PANEL;
            total[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), bf16_256(scales), total[half]);
            total[half] = _mm256_fmadd_ps(bf16_256(zeros), _mm256_set1_ps(work.sum[place]), total[half]);
        }
    }
    float values[PANEL];
    for (int half = 0; half < 2; half++)
        _mm256_storeu_ps(values + 8 * half, _mm256_mul_ps(total[half], _mm256_set1_ps(work.scale[token])));
    store(work, token, panel, values);
}

#elif POLYPHI_NEON

// ------------------------------------------------------------------ NEON with dot products

float32x4_t bf16_128(const uint8_t* at) {
    const uint16x4_t halves = vreinterpret_u16_u8(vld1_u8(at));
    return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

void panel_neon(const Work& work, int64_t panel, int64_t token) {
    const int64_t groups = work.groups();
    const uint8_t* group = work.panel(panel);
    const int8_t* a = work.a + token * work.k;
    float32x4_t total[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int64_t g = 0; g < groups; g++, group += BYTES) {
        const int64_t place = token * groups + g;
        for (int part = 0; part < 4; part++) {
            int32x4_t dot = vdupq_n_s32(work.start[place]);
            for (int j = 0; j < 4; j++) {
                int32_t first, second;
                std::memcpy(&first, a + g * GROUP + j * QUAD, 4);
                std::memcpy(&second, a + g * GROUP + GROUP / 2 + j * QUAD, 4);
                const uint8x16_t pair = vld1q_u8(group + j * 64 + part * 16);
                const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(pair, vdupq_n_u8(15)));
                const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(pair, 4));
                dot = vdotq_s32(dot, low, vreinterpretq_s8_s32(vdupq_n_s32(first)));
                dot = vdotq_s32(dot, high, vreinterpretq_s8_s32(vdupq_n_s32(second)));
            }
            total[part] = vfmaq_f32(total[part], vcvtq_f32_s32(dot), bf16_128(group + SCALES + part * 8));
            total[part] = vfmaq_n_f32(total[part], bf16_128(group + ZEROS + part * 8), work.sum[place]);
        }
    }
    float values[PANEL];
    for (int part = 0; part < 4; part++) vst1q_f32(values + 4 * part, vmulq_n_f32(total[part], work.scale[token]));
    store(work, token, panel, values);
}

#endif

// All tokens of a panel, whose weights stay in the nearest cache meanwhile.
void panel(const Work& work, int isa, int64_t index) {
#if POLYPHI_X86
    if (isa == AVX512) {
        panel_avx512_all(work, index, std::make_integer_sequence<int, TOKENS>());
        return;
    }
#endif
    for (int64_t token = 0; token < work.m; token++) {
#if POLYPHI_X86
        if (isa == AVX2) {
            panel_avx2(work, index, token);
            continue;
        }
#elif POLYPHI_NEON
        if (isa == NEON) {
            panel_neon(work, index, token);
            continue;
        }
#endif
        panel_scalar(work, index, token);
    }
}

template <typename Read>
void quantise(Read at, int64_t k, int8_t* q, float* scale, int32_t* start, float* sum) {
    float most = 0;
    for (int64_t i = 0; i < k; i++) most = std::max(most, std::fabs(at(i)));
    *scale = std::max(most / 127.0f, 1e-12f);
    const float inverse = 1.0f / *scale;
    for (int64_t g = 0; g < k / GROUP; g++) {
        int32_t all = 0;
        for (int64_t i = g * GROUP; i < (g + 1) * GROUP; i++) {
            const float value = std::nearbyint(at(i) * inverse);
            q[i] = int8_t(std::max(-127.0f, std::min(127.0f, value)));
            all += q[i];
        }
        start[g] = -8 * all;
        sum[g] = float(all);
    }
}

}  // namespace

extern "C" {

// 0: no path but the scalar one, 1: AVX2, 2: AVX-512 with VNNI, 3: NEON.
int polyphi_isa() { return best(); }

// Activations [m k], float32 or bfloat16, as int8 with a scale per token, and what `Work` says of groups.
void polyphi_quantise(const void* x, int bf16, int64_t m, int64_t k, int8_t* q, float* scale, int32_t* start, float* sum) {
    for (int64_t t = 0; t < m; t++) {
        const auto* wide = static_cast<const float*>(x) + t * k;
        const auto* halves = static_cast<const uint16_t*>(x) + t * k;
        const int64_t groups = t * (k / GROUP);
        if (bf16)
            quantise([&](int64_t i) { return from_bf16(halves[i]); }, k, q + t * k, scale + t, start + groups, sum + groups);
        else
            quantise([&](int64_t i) { return wide[i]; }, k, q + t * k, scale + t, start + groups, sum + groups);
    }
}

// Weights [n k], a byte each (0 to 15), with scales and zeros [n k/32] in bfloat16, as this file has them.
void polyphi_pack(const uint8_t* q, const uint16_t* scale, const uint16_t* zero, int64_t n, int64_t k, uint8_t* w) {
    const int64_t groups = k / GROUP;
    for (int64_t o = 0; o < n; o++) {
        const int64_t panel = o / PANEL, r = o % PANEL;
        uint8_t* group = w + panel * groups * BYTES;
        for (int64_t g = 0; g < groups; g++, group += BYTES) {
            for (int i = 0; i < GROUP / 2; i++) {
                const uint8_t *at = q + o * k + g * GROUP + i;
                group[i / QUAD * 64 + r * QUAD + i % QUAD] = uint8_t(at[0] | at[GROUP / 2] << 4);
            }
            std::memcpy(group + SCALES + r * 2, scale + o * groups + g, 2);
            std::memcpy(group + ZEROS + r * 2, zero + o * groups + g, 2);
        }
    }
}

// y [m n], float32 or bfloat16. `isa` is at most `polyphi_isa`'s (-1: that); `parallel` runs it in `threads` threads
// (null: threads of its own).
void polyphi_linear(int isa, const int8_t* q, const float* scale, const int32_t* start, const float* sum,
                    const uint8_t* w, void* y, int bf16, int64_t m, int64_t n, int64_t k, Parallel parallel, int threads) {
    const Work work{q, scale, start, sum, w, y, m, n, k, bf16 != 0};
    const int chosen = isa < 0 ? best() : isa;
    const int64_t chunk = std::max<int64_t>(CHUNK, n / PANEL / (8 * std::max(1, threads)));
    spread(
        [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) panel(work, chosen, i);
        },
        n / PANEL, chunk, parallel, threads);
}

}  // extern "C"
