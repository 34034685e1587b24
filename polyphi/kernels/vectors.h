// Vectors of LANES floats, and what attention and blocks compute with them. Included once for each set of instructions,
// by the namespace of that set, which defines LANES.

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

INLINE Vec all(float value) { return Vec{} + value; }

INLINE Vec load(const float* at) { return read<Vec>(at); }
INLINE Vec load(const uint16_t* at) { return as<Vec>(__builtin_convertvector(read<Halves>(at), Bits) << 16); }
INLINE Vec load(const int8_t* at) {
    return __builtin_convertvector(__builtin_convertvector(read<Bytes>(at), Ints), Vec);
}

INLINE float one(float value) { return value; }
INLINE float one(uint16_t value) { return from_bf16(value); }

// As bfloat16, in the high half of each lane; the low half is rubbish.
INLINE Bits rounded(Vec value) {
    const Bits bits = as<Bits>(value);
    const Bits up = bits + 0x7fff + (bits >> 16 & 1);
    return value == value ? up : bits | 0x400000;  // no number stays none
}

INLINE void store(float* at, Vec value) { std::memcpy(at, &value, sizeof value); }
INLINE void store(uint16_t* at, Vec value) {
    const Halves halves = __builtin_convertvector(rounded(value) >> 16, Halves);
    std::memcpy(at, &halves, sizeof halves);
}

INLINE void put(float* at, float value) { *at = value; }
INLINE void put(uint16_t* at, float value) { *at = to_bf16(value); }

// What `store` leaves of a number.
INLINE Vec kept(const float*, Vec value) { return value; }
INLINE Vec kept(const uint16_t*, Vec value) { return as<Vec>(rounded(value) & 0xffff0000u); }

INLINE Vec most(Vec a, Vec b) { return a > b ? a : b; }

#if LANES == 16
INLINE float sum(Vec value) { return _mm512_reduce_add_ps(value); }
#elif LANES == 4 && POLYPHI_NEON
INLINE float sum(Vec value) { return vaddvq_f32(as<float32x4_t>(value)); }
#else
INLINE float sum(Vec value) {
    float lanes[LANES];
    std::memcpy(lanes, &value, sizeof value);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}
#endif

INLINE float most(Vec value) {
    float lanes[LANES];
    std::memcpy(lanes, &value, sizeof value);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] = std::max(lanes[i], lanes[i + width]);
    return lanes[0];
}

// e^x to 2 units in the last place; 0 below -87.
INLINE Vec exponential(Vec x) {
    const Vec low = all(-87.0f), high = all(88.0f);
    const Vec bounded = x < low ? low : (x > high ? high : x);
    // x = n ln 2 + rest; adding 1.5 * 2^23 rounds to a whole number, which the low bits then are.
    const Vec shifted = bounded * 1.44269504f + 12582912.0f;
    const Vec n = shifted - 12582912.0f;
    const Vec rest = (bounded - n * 0.693145752f) - n * 1.42860677e-6f;
    Vec p = rest * 1.3888889e-3f + 8.3333333e-3f;
    p = p * rest + 4.1666668e-2f;
    p = p * rest + 0.16666667f;
    p = p * rest + 0.5f;
    p = p * rest + 1.0f;
    p = p * rest + 1.0f;
    const Vec power = as<Vec>(as<Bits>(p) + (as<Bits>(shifted) << 23));
    return x == x ? (x < low ? all(0) : power) : x;
}
