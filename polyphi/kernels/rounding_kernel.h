// The rounding of weights. Included once for each set of instructions (paths.h).

#include "rotation_kernel.h"

// ---------------------------------------------------------------------- 4 bits. A lane is a group.

// A scale of 1 to 255, and a zero in levels, a multiple of 1/16 below 16.
struct Pair {
    Vec scale, zero;
};

INLINE Vec least(Vec a, Vec b) { return a < b ? a : b; }

// The nearest integer, the even one of two; for values from `low` to `high`, below 2^22.
INLINE Vec integer(Vec value, float low, float high) {
    value = least(most(value, all(low)), all(high));
    return (value + 12582912.0f) - 12582912.0f;
}

INLINE Vec level(Vec v, Vec inverse, Vec zero) { return integer(v * inverse + zero, 0.0f, 15.0f); }

// The pair nearest to a scale and to the weight of level 0.
INLINE Pair pair(Vec scale, Vec zero) {
    scale = integer(scale, 1.0f, 255.0f);
    return {scale, integer(zero / scale * -16.0f, 0.0f, 255.0f) / 16.0f};
}

// The sum over a group in the order in which torch adds: halves of 16.
template <typename Of>
INLINE Vec group_sum(const Of& of) {
    Vec halves[2] = {};
    for (int i = 0; i < GROUP; i++) halves[i / 16] += of(i);
    return halves[0] + halves[1];
}

INLINE Vec error(const Vec* q, const Vec* v, Pair pair) {
    return group_sum([&](int i) {
        const Vec difference = (q[i] - pair.zero) * pair.scale - v[i];
        return difference * difference;
    });
}

// The pair with the least squared error of LANES groups `v` [GROUP].
INLINE Pair search_groups(const Search& search, const Vec* v) {
    Vec low = Vec{}, high = Vec{}, q[GROUP];
    for (int i = 0; i < GROUP; i++) low = least(low, v[i]), high = most(high, v[i]);
    const Vec total = group_sum([&](int i) { return v[i]; });
    const auto set_levels = [&](Pair pair) {
        const Vec inverse = 1.0f / pair.scale;
        for (int i = 0; i < GROUP; i++) q[i] = level(v[i], inverse, pair.zero);
    };
    const auto fit = [&] {  // the least-squares line of weights over levels
        const Vec q_sum = group_sum([&](int i) { return q[i]; });
        const Vec qq = group_sum([&](int i) { return q[i] * q[i]; });
        const Vec qv = group_sum([&](int i) { return q[i] * v[i]; });
        const Vec slope = (float(GROUP) * qv - q_sum * total) / most(float(GROUP) * qq - q_sum * q_sum, all(1.0f));
        return pair(slope, (total - slope * q_sum) / float(GROUP));
    };
    Pair best = pair((high - low) / 15.0f, low);
    set_levels(best);
    Vec smallest = error(q, v, best);
    const auto evaluate = [&](Pair other) {
        set_levels(other);
        const Vec sum = error(q, v, other);
        best.scale = sum < smallest ? other.scale : best.scale;
        best.zero = sum < smallest ? other.zero : best.zero;
        smallest = least(sum, smallest);
    };
    for (int i = 0; i < search.start_count; i++) {
        const float below = search.starts[2 * i], above = search.starts[2 * i + 1];
        evaluate(pair((high * above - low * below) / 15.0f, low * below));
        evaluate(fit());
    }
    for (int i = 0; i < search.fits; i++) {
        set_levels(best);
        evaluate(fit());
    }
    return best;
}

// Outputs `begin` to `end`.
template <typename From>
void search_rows(const Search& search, int64_t begin, int64_t end) {
    const int64_t groups = search.groups();
    for (int64_t output = begin; output < end; output++) {
        const From* weight = static_cast<const From*>(search.weight) + output * search.inputs;
        const float unit = search.row[output];
        for (int64_t first = 0; first < groups; first += LANES) {
            const int count = int(std::min<int64_t>(LANES, groups - first));
            float lanes[GROUP][LANES] = {};
            for (int lane = 0; lane < count; lane++)
                for (int i = 0; i < GROUP; i++)
                    lanes[i][lane] = unit == 0 ? 0.0f : one(weight[(first + lane) * GROUP + i]) / unit;
            Vec v[GROUP];
            for (int i = 0; i < GROUP; i++) v[i] = load(lanes[i]);
            const Pair best = search_groups(search, v);
            const Vec inverse = 1.0f / best.scale;
            for (int i = 0; i < GROUP; i++) store(lanes[i], level(v[i], inverse, best.zero));
            float scale[LANES], zero[LANES];
            store(scale, best.scale), store(zero, best.zero * 16.0f);
            for (int lane = 0; lane < count; lane++) {
                const int64_t group = output * groups + first + lane;
                search.s[group] = uint8_t(scale[lane]), search.z[group] = uint8_t(zero[lane]);
                for (int i = 0; i < GROUP; i++) search.q[group * GROUP + i] = uint8_t(lanes[i][lane]);
            }
        }
    }
}

// ---------------------------------------------------------------------- 6 and 8 bits

// A row of `inputs` weights, padded to whole blocks and rotated.
template <typename From>
INLINE void rotate_row(const From* x, int64_t inputs, float* to) {
    for (int64_t b = 0; b < up(inputs, BLOCK); b++) {
        From padded[BLOCK] = {};
        std::memcpy(padded, x + b * BLOCK, size_t(std::min<int64_t>(BLOCK, inputs - b * BLOCK)) * sizeof(From));
        Vec block[BLOCK / LANES];
        for (int v = 0; v < BLOCK / LANES; v++) block[v] = load(padded + v * LANES);
        rotate(block);
        for (int v = 0; v < BLOCK / LANES; v++) store(to + b * BLOCK + v * LANES, block[v] * 0.125f);
    }
}

// Rows `begin` to `end` of x [rows inputs].
template <typename From>
void rotate_rows(const void* x, float* to, int64_t begin, int64_t end, int64_t inputs) {
    for (int64_t r = begin; r < end; r++)
        rotate_row(static_cast<const From*>(x) + r * inputs, inputs, to + r * up(inputs, BLOCK) * BLOCK);
}

// Outputs `begin` to `end`.
template <typename From>
void round_blocks(const Blocks& work, int64_t begin, int64_t end) {
    const int64_t blocks = up(work.inputs, BLOCK);
    std::vector<float> values(size_t(blocks * BLOCK)), steps(static_cast<size_t>(blocks));
    for (int64_t o = begin; o < end; o++) {
        rotate_row(static_cast<const From*>(work.weight) + o * work.inputs, work.inputs, values.data());
        float widest = 0;
        for (int64_t b = 0; b < blocks; b++) {
            Vec largest = Vec{};
            for (int v = 0; v < BLOCK / LANES; v++) {
                const Vec value = load(values.data() + b * BLOCK + v * LANES);
                largest = most(largest, most(value, -value));
            }
            steps[size_t(b)] = most(largest) / float(work.most);
            widest = std::max(widest, steps[size_t(b)]);
        }
        const float unit = work.row[o] = std::max(widest / 255.0f, 1e-30f);
        for (int64_t b = 0; b < blocks; b++) {
            const float scale = std::min(std::max(std::ceil(steps[size_t(b)] / unit), 1.0f), 255.0f);
            work.s[o * blocks + b] = uint8_t(scale);
            for (int v = 0; v < BLOCK / LANES; v++) {
                const Vec level = integer(load(values.data() + b * BLOCK + v * LANES) / all(scale * unit),
                                          float(-work.most), float(work.most));
                const Bytes bytes = narrowed(as<Ints>(level + 12582912.0f));
                std::memcpy(work.q + (o * blocks + b) * BLOCK + v * LANES, &bytes, sizeof bytes);
            }
        }
    }
}
