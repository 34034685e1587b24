// Bidirectional attention of the encoders over bfloat16, within segments.
//
// Products of bfloat16 (AVX-512 BF16) are used if the CPU has them, for heads of up to 80 channels; otherwise keys and
// values are converted to float32 (encoder_attention_kernel.h, written once over the vectors of each set of
// instructions).

#include "encoder.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector is passed to a function that isn't inlined

using namespace polyphi;

namespace {

// Attention within segments of rows: the first `queries` rows of a segment attend to its first `keys` rows. Logits are
// scaled by 1/sqrt(d), and `distances` [heads, 2 longest - 1], if not null, is added to them by key - query.
struct Attention {
    Raw q, k, v;
    uint16_t* y;
    const int64_t *starts, *queries, *keys;
    int64_t heads, d;
    const float* distances;
    int64_t longest;
};

// ------------------------------------------------------------------ in float32

#define KERNEL "encoder_attention_kernel.h"
#include "paths.h"

// ------------------------------------------------------------------ by pairs of bfloat16

#if POLYPHI_X86

namespace pairs {

#define WITH_BF16 __attribute__((target(POLYPHI_AVX512 ",avx512bf16")))

constexpr int LANES = 16;
constexpr int TOGETHER = 5;    // queries whose logits are computed at once
constexpr int BLOCK = 64;      // keys of a block
constexpr int WIDEST = 80;     // channels of a head: 5 vectors for 5 queries are the most sums that fit in registers

// A head's keys and values in the layout of products of pairs: keys [block, pair of channels, 64 keys, 2], values [pair
// of keys, channels rounded up to 16, 2]; and the logits of some queries.
struct Head {
    Room<uint16_t> rows, keys, values, shares;
    Room<float> scores;
};

WITH_BF16 inline __m512 bf16_512(const uint16_t* at) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))), 16));
}

// Channels `from` to `from + d` of a row in bfloat16, zeros up to `room` (a multiple of 16).
WITH_BF16 void copy_row(const Raw& raw, int64_t row, int64_t from, int64_t d, int64_t room, uint16_t* to) {
    const uint16_t* at = raw.at + row * raw.stride + from;
    for (int64_t i = 0; i < room; i += LANES) {
        const __mmask16 mask = i + LANES <= d ? 0xffff : i < d ? (1 << (d - i)) - 1 : 0;
        __m256i halves = _mm256_maskz_loadu_epi16(mask, at + i);
        if (raw.scale || raw.bias) {
            const __m512 scale = _mm512_set1_ps(raw.scale ? raw.scale[row] : 1.0f);
            const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
            const __m512 bias = raw.bias ? _mm512_maskz_loadu_ps(mask, raw.bias + from + i) : _mm512_setzero_ps();
            halves = (__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(value, scale, bias));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), halves);
    }
}

WITH_BF16 void pack_head(const Attention& w, Head& head, int64_t start, int64_t count, int64_t from) {
    const int64_t room = (w.d + LANES - 1) / LANES * LANES, blocks = (count + BLOCK - 1) / BLOCK;
    uint16_t* rows = head.rows.of(BLOCK * room);
    uint16_t* keys = head.keys.of(blocks * BLOCK * w.d);
    uint16_t* values = head.values.of(blocks * BLOCK * room);
    const __m512i lanes = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32(int(room / 2)));
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t here = std::min<int64_t>(BLOCK, count - b * BLOCK);
        std::memset(rows + here * room, 0, (BLOCK - here) * room * 2);
        for (int64_t j = 0; j < here; j++) copy_row(w.k, start + b * BLOCK + j, from, w.d, room, rows + j * room);
        for (int64_t p = 0; p < w.d / 2; p++)
            for (int64_t part = 0; part < BLOCK / LANES; part++) {
                const __m512i pairs = _mm512_i32gather_epi32(lanes, rows + part * LANES * room + p * 2, 4);
                _mm512_storeu_si512(keys + ((b * w.d / 2 + p) * BLOCK + part * LANES) * 2, pairs);
            }
        for (int64_t j = 0; j < here; j++) copy_row(w.v, start + b * BLOCK + j, from, w.d, room, rows + j * room);
        for (int64_t j = 0; j < BLOCK; j += 2)
            for (int64_t i = 0; i < room; i += LANES) {
                const auto* even = reinterpret_cast<const __m256i*>(rows + j * room + i);
                const auto* odd = reinterpret_cast<const __m256i*>(rows + (j + 1) * room + i);
                const __m512i pair = _mm512_or_si512(
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256(even)),
                    _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(odd)), 16));
                _mm512_storeu_si512(values + ((b * BLOCK + j) / 2 * room + i) * 2, pair);
            }
    }
}

WITH_BF16 inline __m512bh pair_of(const uint16_t* at) {
    int32_t pair;
    std::memcpy(&pair, at, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

// Logits of Q queries (`rows`, `room` apart) and all keys, `width` apart.
template <int Q>
WITH_BF16 void score(const Head& head, const uint16_t* rows, int64_t room, int64_t d, int64_t width, float* scores) {
    const uint16_t* at = head.keys.first;
    for (int64_t b = 0; b < width; b += BLOCK) {
        __m512 total[Q][4];
        for (int q = 0; q < Q; q++)
            for (int j = 0; j < 4; j++) total[q][j] = _mm512_setzero_ps();
        for (int64_t p = 0; p < d; p += 2, at += BLOCK * 2) {
            __m512bh k[4];
            for (int j = 0; j < 4; j++) k[j] = (__m512bh)_mm512_loadu_si512(at + j * LANES * 2);
            for (int q = 0; q < Q; q++) {
                const __m512bh pair = pair_of(rows + q * room + p);
                for (int j = 0; j < 4; j++) total[q][j] = _mm512_dpbf16_ps(total[q][j], pair, k[j]);
            }
        }
        for (int q = 0; q < Q; q++)
            for (int j = 0; j < 4; j++) _mm512_storeu_ps(scores + q * width + b + j * LANES, total[q][j]);
    }
}

WITH_BF16 inline __m512 exponential_512(__m512 x) {  // of x <= 0
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 120);
    for (float next : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(next));
    return _mm512_scalef_ps(p, n);
}

// Exponentials of one query's logits in bfloat16; returns their sum. `distances` begins with that of its first key.
WITH_BF16 float softmax(float* scores, int64_t count, int64_t width, float scale, const float* distances,
                        uint16_t* shares) {
    const __m512 none = _mm512_set1_ps(-INFINITY);
    __m512 high = none;
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 real = count - i >= LANES ? 0xffff : (1 << (count - i)) - 1;
        __m512 value = _mm512_mul_ps(_mm512_loadu_ps(scores + i), _mm512_set1_ps(scale));
        if (distances) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(real, distances + i));
        value = _mm512_mask_mov_ps(none, real, value);
        _mm512_storeu_ps(scores + i, value);
        high = _mm512_max_ps(high, value);
    }
    high = _mm512_set1_ps(_mm512_reduce_max_ps(high));
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += LANES) {
        __m256i halves = _mm256_setzero_si256();
        if (i < count) {
            const __m512 share = exponential_512(_mm512_sub_ps(_mm512_loadu_ps(scores + i), high));
            total = _mm512_add_ps(total, share);
            halves = (__m256i)_mm512_cvtneps_pbh(share);
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(shares + i), halves);
    }
    return _mm512_reduce_add_ps(total);
}

// Sums of V vectors of the values weighted for Q queries.
template <int Q, int V>
WITH_BF16 void mix(const Head& head, const uint16_t* shares, int64_t width, const float* sums, int64_t d, uint16_t* y,
                   int64_t stride) {
    __m512 total[Q][V];
    for (int q = 0; q < Q; q++)
        for (int j = 0; j < V; j++) total[q][j] = _mm512_setzero_ps();
    const uint16_t* at = head.values.first;
    for (int64_t i = 0; i < width; i += 2, at += V * LANES * 2) {
        __m512bh v[V];
        for (int j = 0; j < V; j++) v[j] = (__m512bh)_mm512_loadu_si512(at + j * LANES * 2);
        for (int q = 0; q < Q; q++) {
            const __m512bh pair = pair_of(shares + q * width + i);
            for (int j = 0; j < V; j++) total[q][j] = _mm512_dpbf16_ps(total[q][j], pair, v[j]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int j = 0; j < V; j++) {
            const __mmask16 real = d - j * LANES >= LANES ? 0xffff : (1 << (d - j * LANES)) - 1;
            const __m512 value = _mm512_div_ps(total[q][j], _mm512_set1_ps(sums[q]));
            _mm256_mask_storeu_epi16(y + q * stride + j * LANES, real, (__m256i)_mm512_cvtneps_pbh(value));
        }
}

template <int Q>
WITH_BF16 void attend_some(const Attention& w, Head& head, int64_t start, int64_t first, int64_t count, int64_t h) {
    const int64_t room = (w.d + LANES - 1) / LANES * LANES, width = (count + BLOCK - 1) / BLOCK * BLOCK;
    const float scale = 1.0f / std::sqrt(float(w.d));
    float sums[Q];
    for (int q = 0; q < Q; q++) copy_row(w.q, start + first + q, h * w.d, w.d, room, head.rows.first + q * room);
    score<Q>(head, head.rows.first, room, w.d, width, head.scores.first);
    for (int q = 0; q < Q; q++) {
        const float* distances = nullptr;
        if (w.distances) distances = w.distances + h * (2 * w.longest - 1) + w.longest - 1 - (first + q);
        sums[q] = softmax(head.scores.first + q * width, count, width, scale, distances, head.shares.first + q * width);
    }
    const int64_t stride = w.heads * w.d;
    using Mix = void (*)(const Head&, const uint16_t*, int64_t, const float*, int64_t, uint16_t*, int64_t);
    static constexpr Mix mixes[] = {mix<Q, 1>, mix<Q, 2>, mix<Q, 3>, mix<Q, 4>, mix<Q, 5>};
    uint16_t* y = w.y + (start + first) * stride + h * w.d;
    mixes[room / LANES - 1](head, head.shares.first, width, sums, w.d, y, stride);
}

// One head of one segment.
WITH_BF16 void attend(const Attention& w, int64_t index) {
    static thread_local Head head;
    const int64_t segment = index / w.heads, h = index % w.heads;
    const int64_t start = w.starts[segment], count = w.keys[segment], queries = w.queries[segment];
    if (!count) {  // no key to attend to
        for (int64_t t = start; t < start + queries; t++)
            std::memset(w.y + t * w.heads * w.d + h * w.d, 0, w.d * 2);
        return;
    }
    pack_head(w, head, start, count, h * w.d);
    const int64_t width = (count + BLOCK - 1) / BLOCK * BLOCK;
    head.scores.of(TOGETHER * width);
    head.shares.of(TOGETHER * width);
    using Some = void (*)(const Attention&, Head&, int64_t, int64_t, int64_t, int64_t);
    static constexpr Some some[] = {attend_some<1>, attend_some<2>, attend_some<3>, attend_some<4>, attend_some<5>};
    for (int64_t first = 0; first < queries; first += TOGETHER)
        some[std::min<int64_t>(TOGETHER, queries - first) - 1](w, head, start, first, count, h);
}

}  // namespace pairs

#endif

using Attend = void (*)(const Attention&, int64_t);

Attend attend(int isa, bool by_pairs) {
    if (isa < 0) isa = best();
#if POLYPHI_X86
    if (by_pairs && isa == AVX512) return pairs::attend;
#endif
    (void)by_pairs;
    return CHOSEN(isa, attend);
}

}  // namespace

extern "C" {

// q, k and v [rows, heads * d] of one stride, to y [rows, heads * d]. `by_pairs` is for tests: 0 disables products of
// bfloat16. See `polyphi_linear` for `isa`, `parallel` and `threads`.
void polyphi_attention(int isa, int by_pairs, const void* q, const void* k, const void* v, int64_t stride, const float* scale,
                       const float* q_bias, const float* k_bias, const float* v_bias, void* y, const int64_t* starts,
                       const int64_t* queries, const int64_t* keys, int64_t segments, int64_t heads, int64_t d,
                       const float* distances, int64_t longest, Parallel parallel, int threads) {
    const auto part = [&](const void* at, const float* bias) {
        return Raw{static_cast<const uint16_t*>(at), stride, scale, bias};
    };
    auto* to = static_cast<uint16_t*>(y);
    const Attention work{part(q, q_bias), part(k, k_bias), part(v, v_bias), to, starts, queries, keys, heads, d,
                         distances, longest};
    bool fits = by_pairs != 0 && has_bf16();
#if POLYPHI_X86
    fits = fits && d % 2 == 0 && d <= pairs::WIDEST;
#endif
    const Attend run = attend(isa, fits);
    spread([&](int64_t begin, int64_t end) { for (int64_t i = begin; i < end; i++) run(work, i); }, segments * heads,
           1, parallel, threads);
}

}  // extern "C"
