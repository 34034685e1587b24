// Vectors of LANES floats and functions on them. Included once for each set of instructions, in its namespace, after
// LANES is defined.

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

template <typename To, typename From>
INLINE To as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename To>
INLINE To read(const void* at) {
    To found;
    std::memcpy(&found, at, sizeof found);
    return found;
}

// Subtracting 0 changes no number, so that the compiler leaves it out; adding 0 would change -0.
INLINE Vec all(float value) { return value - Vec{}; }

INLINE Vec load(const float* at) { return read<Vec>(at); }

// GCC 12 converts integers of other widths one by one, so x86 uses intrinsics.
#if LANES == 16
INLINE Bits widened(Halves halves) { return as<Bits>(_mm512_cvtepu16_epi32(as<__m256i>(halves))); }
INLINE Ints widened(Bytes bytes) { return as<Ints>(_mm512_cvtepi8_epi32(as<__m128i>(bytes))); }
INLINE Halves narrowed(Bits bits) { return as<Halves>(_mm512_cvtepi32_epi16(as<__m512i>(bits))); }
INLINE Bytes narrowed(Ints ints) { return as<Bytes>(_mm512_cvtepi32_epi8(as<__m512i>(ints))); }
#elif LANES == 8
INLINE Bits widened(Halves halves) { return as<Bits>(_mm256_cvtepu16_epi32(as<__m128i>(halves))); }
INLINE Ints widened(Bytes bytes) { return as<Ints>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(as<int64_t>(bytes)))); }
INLINE Halves narrowed(Bits bits) {
    const __m256i pairs = _mm256_packus_epi32(as<__m256i>(bits), as<__m256i>(bits));
    return as<Halves>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 8)));
}
INLINE Bytes narrowed(Ints ints) {
    const __m256i low = _mm256_set1_epi32(0x0c080400);  // the first byte of each of four
    const __m256i bytes = _mm256_shuffle_epi8(as<__m256i>(ints), low);
    return as<Bytes>(_mm_cvtsi128_si64(
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1))));
}
#else
INLINE Bits widened(Halves halves) { return __builtin_convertvector(halves, Bits); }
INLINE Ints widened(Bytes bytes) { return __builtin_convertvector(bytes, Ints); }
INLINE Halves narrowed(Bits bits) { return __builtin_convertvector(bits, Halves); }
INLINE Bytes narrowed(Ints ints) { return __builtin_convertvector(ints, Bytes); }
#endif

INLINE Vec load(const uint16_t* at) { return as<Vec>(widened(read<Halves>(at)) << 16); }
INLINE Vec load(const int8_t* at) { return __builtin_convertvector(widened(read<Bytes>(at)), Vec); }

INLINE float one(float value) { return value; }
INLINE float one(uint16_t value) { return from_bf16(value); }

// As bfloat16, in the high half of each lane; the low half is undefined.
INLINE Bits rounded(Vec value) {
    const Bits bits = as<Bits>(value);
    const Bits up = bits + 0x7fff + (bits >> 16 & 1);
    return value == value ? up : bits | 0x400000;  // NaN stays NaN
}

INLINE void store(float* at, Vec value) { std::memcpy(at, &value, sizeof value); }
INLINE void store(uint16_t* at, Vec value) {
    const Halves halves = narrowed(rounded(value) >> 16);
    std::memcpy(at, &halves, sizeof halves);
}

INLINE void put(float* at, float value) { *at = value; }
INLINE void put(uint16_t* at, float value) { *at = to_bf16(value); }

// The value after `store` and `load`.
INLINE Vec kept(const float*, Vec value) { return value; }
INLINE Vec kept(const uint16_t*, Vec value) { return as<Vec>(rounded(value) & 0xffff0000u); }

INLINE Vec most(Vec a, Vec b) { return a > b ? a : b; }

// a * b + c, rounded once if the CPU has a fused instruction.
#if LANES == 16
INLINE Vec fused(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
#elif LANES == 8
INLINE Vec fused(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
#elif LANES == 4
INLINE Vec fused(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
#else
INLINE Vec fused(Vec a, Vec b, Vec c) { return a * b + c; }
#endif

INLINE float sum(Vec value) {
    float lanes[LANES];
    std::memcpy(lanes, &value, sizeof value);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

// The sums of four vectors.
#if LANES >= 8
INLINE __m128 halved(__m256 four) { return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)); }
#endif
#if LANES == 16
INLINE void sums(const Vec* of, float* to) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(of[0], of[2]), _mm512_unpackhi_ps(of[0], of[2]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(of[1], of[3]), _mm512_unpackhi_ps(of[1], of[3]));
    const __m512 c = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    _mm_storeu_ps(to, halved(_mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1))));
}
#elif LANES == 8
INLINE void sums(const Vec* of, float* to) {
    _mm_storeu_ps(to, halved(_mm256_hadd_ps(_mm256_hadd_ps(of[0], of[1]), _mm256_hadd_ps(of[2], of[3]))));
}
#else
INLINE void sums(const Vec* of, float* to) {
    for (int i = 0; i < 4; i++) to[i] = sum(of[i]);
}
#endif

INLINE float most(Vec value) {
    float lanes[LANES];
    std::memcpy(lanes, &value, sizeof value);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] = std::max(lanes[i], lanes[i + width]);
    return lanes[0];
}

// e^x to 2 units in the last place, for x from -87 to 88.
INLINE Vec power(Vec x) {
    // x = n ln 2 + rest; adding 1.5 * 2^23 rounds to an integer in the low bits.
    const Vec shifted = fused(x, all(1.44269504f), all(12582912.0f)), n = shifted - 12582912.0f;
    const Vec rest = fused(n, all(-1.42860677e-6f), fused(n, all(-0.693145752f), x));
    Vec p = fused(rest, all(1.3888889e-3f), all(8.3333333e-3f));
    p = fused(p, rest, all(4.1666668e-2f));
    p = fused(p, rest, all(0.16666667f));
    p = fused(p, rest, all(0.5f));
    p = fused(p, rest, all(1.0f));
    p = fused(p, rest, all(1.0f));
    return as<Vec>(as<Bits>(p) + (as<Bits>(shifted) << 23));
}

// e^x; 0 below -87, infinite above 88.
INLINE Vec exponential(Vec x) {
    const Vec low = all(-87.0f), high = all(88.0f);
    const Vec found = power(x < low ? low : (x > high ? high : x));
    return x == x ? (x < low ? all(0) : (x > high ? all(INFINITY) : found)) : x;
}

INLINE Vec gated(Vec gate, Vec up) { return up * (gate / (exponential(-gate) + 1.0f)); }
