// Grouped-query causal attention over a block cache, which also writes the new keys and values: the new tokens of many
// sequences attend to the cached tokens of their own sequence and, causally, to the new ones.
//
// The cache has rows of d numbers for every kv head, in scattered blocks of BLOCK tokens; a sequence has a block table.
// Rows are float32, bfloat16, or int8 with a float scale per row. A token's result depends on its sequence alone: the
// partition of the work depends on neither other sequences nor threads.
//
// Few queries (one token, or some draft tokens) stream the keys, bound by memory bandwidth; many (a prompt) are matrix
// products (attention_kernel.h). Logits, softmax and sums are float32; with products of bfloat16 pairs (AVX-512 BF16)
// the softmax weights are rounded to bfloat16, as in torch's kernel.

#include <type_traits>

#include "native.h"

using namespace polyphi;

namespace {

constexpr int BLOCK = 32;         // tokens of a cache block
constexpr int FEW = 12;           // most queries of a kv head for the kernel of few queries
constexpr int64_t SPAN = 512;     // keys of a piece with few queries
constexpr int ROWS = 64;          // queries of a piece with many queries
constexpr int KEYS = 128;         // keys that these process at a time
constexpr float NEVER = -1e30f;   // the logit of masked keys

// The arguments of polyphi_attend. Strides are in numbers; `starts` [S + 1]: first new token of each sequence, `ends`
// [S]: lengths with the new tokens, `tables` [S]: index of a sequence's first block in `blocks`, `rows`: cache rows per
// head.
struct Call {
    const void *q, *k, *v;
    void* out;
    int64_t q_stride, k_stride, v_stride;
    void *key_memory, *value_memory;
    float *key_scales, *value_scales;
    int64_t rows;
    int heads, kv_heads, d;
    int sequences;
    const int64_t *starts, *ends, *tables;
    const int32_t* blocks;

    int group() const { return heads / kv_heads; }
    int64_t tokens() const { return starts[sequences]; }
    int64_t fresh(int s) const { return starts[s + 1] - starts[s]; }
    int sequence(int64_t token) const {
        return int(std::upper_bound(starts, starts + sequences + 1, token) - starts) - 1;
    }
    // Position of a new token in its sequence, number of keys that new token `t` of a sequence attends to, and cache
    // row of a position.
    int64_t place(int s, int64_t token) const { return ends[s] - starts[s + 1] + token; }
    int64_t seen(int s, int64_t t) const { return ends[s] - fresh(s) + t + 1; }
    int64_t row(int s, int head, int64_t place) const {
        return head * rows + int64_t(blocks[tables[s] + place / BLOCK]) * BLOCK + place % BLOCK;
    }
    template <class Held> Held* keys() const { return static_cast<Held*>(key_memory); }
    template <class Held> Held* values() const { return static_cast<Held*>(value_memory); }
    template <class Kind> const Kind* new_key(int64_t token, int head) const {
        return static_cast<const Kind*>(k) + token * k_stride + head * d;
    }
    template <class Kind> const Kind* new_value(int64_t token, int head) const {
        return static_cast<const Kind*>(v) + token * v_stride + head * d;
    }
    template <class Kind> const Kind* query(int s, int64_t t, int head) const {
        return static_cast<const Kind*>(q) + (starts[s] + t) * q_stride + head * d;
    }
    template <class Kind> Kind* result(int s, int64_t t, int head) const {
        return static_cast<Kind*>(out) + ((starts[s] + t) * heads + head) * d;
    }
};

// Work on new tokens `token` to `token + tokens` of a sequence, the query heads of one kv head, and keys `first` to
// `last`. `partial` has the partial results if several pieces share the queries: [rows] of Softmax, and sums [rows, d].
struct Piece {
    int sequence, head;
    int64_t token;
    int tokens;
    bool few;
    int64_t first, last;
    float* partial;
};

struct Softmax {
    float most, total;
};

struct Pieces {
    std::vector<Piece> all;
    std::vector<std::pair<int, int>> joined;  // first, count
    std::vector<float> partial;

    explicit Pieces(const Call& call) {
        const int group = call.group();
        size_t floats = 0;
        for (int s = 0; s < call.sequences; s++) {
            const int64_t fresh = call.fresh(s), end = call.ends[s];
            if (fresh * group > FEW) {
                // The pieces with the most keys first.
                const int64_t step = ROWS / group;
                for (int64_t token = (fresh - 1) / step * step; token >= 0; token -= step)
                    for (int head = 0; head < call.kv_heads; head++)
                        all.push_back({s, head, token, int(std::min(step, fresh - token)), false, 0, end, nullptr});
                continue;
            }
            for (int head = 0; head < call.kv_heads; head++) {
                const int count = int((end + SPAN - 1) / SPAN);
                if (count > 1) joined.emplace_back(int(all.size()), count);
                for (int64_t first = 0; first < end; first += SPAN)
                    all.push_back({s, head, 0, int(fresh), true, first, std::min(first + SPAN, end), nullptr});
                if (count > 1) floats += size_t(count) * fresh * group * (call.d + 2);
            }
        }
        partial.resize(floats);
        float* at = partial.data();
        for (const auto& [first, count] : joined)
            for (int i = first; i < first + count; i++) {
                all[i].partial = at;
                at += all[i].tokens * group * (call.d + 2);
            }
    }
};

#define KERNEL "attention_kernel.h"
#define WITH_PAIRS
#include "paths.h"

using Attend = void (*)(const Call&, const Pieces&, Parallel, int);

template <class Kind, class Held>
Attend chosen(int isa, bool pairs) {
#if POLYPHI_X86
    if constexpr (std::is_same<Kind, uint16_t>::value)
        if (pairs && isa == AVX512) return avx512_bf16::attend<Kind, Held>;
#endif
    (void)pairs;
    return CHOSEN(isa, attend<Kind, Held>);
}

}  // namespace

extern "C" {

// Whether this CPU multiplies pairs of bfloat16.
int polyphi_pairs() { return has_bf16() ? 1 : 0; }

// q [T, heads, d], new k and v [T, kv_heads, d], out [T, heads, d] in float32 or bfloat16 (`bf16`); the cache in the
// same type, or int8 if there are scales. `isa` must be supported (`polyphi_has`; -1: the best), `pairs` as above. d is
// a multiple of 16, and a kv head has at most ROWS query heads.
void polyphi_attend(int isa, int pairs, int bf16, const void* q, const void* k, const void* v, void* out,
                    int64_t q_stride, int64_t k_stride, int64_t v_stride, void* keys, void* values, float* key_scales,
                    float* value_scales, int64_t rows, int heads, int kv_heads, int d, int sequences,
                    const int64_t* starts, const int64_t* ends, const int64_t* tables, const int32_t* blocks,
                    Parallel parallel, int threads) {
    const Call call{q, k, v, out, q_stride, k_stride, v_stride, keys, values, key_scales, value_scales, rows,
                    heads, kv_heads, d, sequences, starts, ends, tables, blocks};
    if (isa < 0) isa = best();
    Attend attend = key_scales ? chosen<float, int8_t>(isa, pairs) : chosen<float, float>(isa, pairs);
    if (bf16) attend = key_scales ? chosen<uint16_t, int8_t>(isa, pairs) : chosen<uint16_t, uint16_t>(isa, pairs);
    attend(call, Pieces(call), parallel, threads);
}

}  // extern "C"
