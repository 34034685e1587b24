// The rotation of a block of 64 inputs by a Hadamard matrix, which spreads a large value over the block. Included once
// for each set of instructions, after vectors.h. Every path adds the same numbers in the same order.

// The lanes of a vector in the order i ^ H.
template <int H, int... I>
INLINE Vec exchanged(Vec vector, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(vector, vector, (I ^ H)...);
#else
    return __builtin_shuffle(vector, Ints{(I ^ H)...});
#endif
}

// The sums of lanes i and i ^ H in the first of both, and their differences in the second.
template <int H, int... I>
INLINE void combine_lanes(Vec* block, std::integer_sequence<int, I...> lanes) {
    const Vec sign = {((I & H) ? -1.0f : 1.0f)...};
    for (int v = 0; v < BLOCK / LANES; v++) block[v] = fused(block[v], sign, exchanged<H>(block[v], lanes));
}

// A block times the Hadamard matrix, whose columns have the length 8.
INLINE void rotate(Vec* block) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    if constexpr (LANES > 1) combine_lanes<1>(block, lanes);
    if constexpr (LANES > 2) combine_lanes<2>(block, lanes);
    if constexpr (LANES > 4) combine_lanes<4>(block, lanes);
    if constexpr (LANES > 8) combine_lanes<8>(block, lanes);
    for (int apart = 1; apart < BLOCK / LANES; apart *= 2)
        for (int first = 0; first < BLOCK / LANES; first += 2 * apart)
            for (int v = first; v < first + apart; v++) {
                const Vec one = block[v], other = block[v + apart];
                block[v] = one + other;
                block[v + apart] = one - other;
            }
}
