// Grouped-query causal attention over keys and values that lie in blocks, and their writing: the new tokens of many
// sequences, each against all that is held of its own and, causally, the new ones.
//
// Memory holds for every kv head rows of d numbers, in blocks of BLOCK tokens that lie anywhere; a sequence's table
// says where. They are float32, bfloat16, or int8 with a float scale for each row. A token's result follows from its
// sequence alone: how work is cut into pieces depends on neither neighbours nor threads.
//
// Few queries (a word, or some guesses) read keys as they come, bound by memory; many (a prompt) are matrix products
// (attention_kernel.h). Scores, softmax and sums are float32; where pairs of bfloat16 are multiplied (AVX-512 BF16)
// weights are rounded to them, as torch's kernel does.

#include <type_traits>

#include "native.h"

using namespace polyphi;

namespace {

constexpr int BLOCK = 32;         // tokens that lie side by side
constexpr int FEW = 12;           // queries of a kv head that are few
constexpr int64_t SPAN = 512;     // keys of a piece of work with few queries
constexpr int ROWS = 64;          // queries of a piece with many
constexpr int KEYS = 128;         // that these meet at a time
constexpr float NEVER = -1e30f;   // the score of what isn't seen

// What polyphi_attend gets. Strides are in numbers; `starts` [S + 1] are where sequences begin among the new tokens,
// `ends` [S] their lengths with them, `tables` [S] where a sequence's blocks begin in `blocks`, `rows` those of a head
// in memory.
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
    // A new token's place in its sequence, how many keys new token `t` of a sequence sees, and the row of a place.
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

// New tokens `token` to `token + tokens` of a sequence, the query heads of one kv head, and keys `first` to `last`.
// `partial` holds what is found where there are other pieces of the same: [rows] of Softmax, and sums [rows, d].
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
                // Those with most to do first.
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
#define PAIRS 0
#include "paths.h"
#undef PAIRS

#if POLYPHI_X86
POLYPHI_BEGIN(POLYPHI_AVX512 ",avx512bf16")
namespace avx512_bf16 {
#define LANES 16
#define PAIRS 1
#include "vectors.h"
#include "attention_kernel.h"
#undef PAIRS
#undef LANES
}  // namespace avx512_bf16
POLYPHI_END
#endif

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

// Whether pairs of bfloat16 can be multiplied here.
int polyphi_pairs() { return has_bf16() ? 1 : 0; }

// q [T, heads, d], new k and v [T, kv_heads, d], out [T, heads, d] in float32 or bfloat16 (`bf16`); memory in the same
// type, or int8 where there are scales. `isa` is one that `polyphi_has` (-1: the best), `pairs` as above. d is a multiple
// of 16, a kv head serves at most ROWS heads.
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
