// The kernels of encoder.cpp over one set of instructions, whose vectors the including namespace has defined.

INLINE Vec least(Vec a, Vec b) { return a < b ? a : b; }
INLINE Vec magnitude(Vec a) { return as<Vec>(as<Bits>(a) & 0x7fffffff); }

INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + power(most(least(-x, all(88)), all(-87)))); }

INLINE Vec gelu(Vec x) {  // the tanh form
    return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}

// Quantizes a row to bytes; returns its scale.
INLINE float quantize(const float* row, int64_t d, uint8_t* q) {
    Vec high = all(0);
    for (int64_t i = 0; i < d; i += LANES) high = most(high, magnitude(load(row + i)));
    const float scale = std::max(most(high) / 127.0f, 1e-12f), inverse = 1.0f / scale;
    for (int64_t i = 0; i < d; i += LANES) {
        const Vec value = load(row + i) * inverse;
        // Adding 1.5 * 2^23 leaves the nearest integer in the low bits; plus 128.
        const Vec shifted = most(least(value, all(127)), all(-127)) + 12583040.0f;
        const Bytes bytes = narrowed(as<Ints>(shifted));
        std::memcpy(q + i, &bytes, sizeof bytes);
    }
    return scale;
}

// LANES numbers of a product.
INLINE Vec load(const Raw& raw, int64_t row, int64_t i) {
    Vec value = load(raw.at + row * raw.stride + i);
    if (raw.scale) value *= raw.scale[row];
    return raw.bias ? value + load(raw.bias + i) : value;
}

// Stores a row in the output.
INLINE void put(const Out& out, int64_t row, const float* values, int64_t d) {
    if (out.q) out.scale[row] = quantize(values, d, out.q + row * d);
    if (out.y)
        for (int64_t i = 0; i < d; i += LANES) store(out.y + row * d + i, load(values + i));
}

// ------------------------------------------------------------------ residual and norm

void norm(const Norm& w, int64_t begin, int64_t end) {
    float* row = scratch(w.d);
    for (int64_t t = begin; t < end; t++) {
        Vec total = {};
        for (int64_t i = 0; i < w.d; i += LANES) {
            Vec value = load(w.x + t * w.d + i);
            if (w.raw.at) {
                uint16_t* at = w.sum + t * w.d + i;
                store(at, fused(load(w.raw, t, i), all(w.factor), value));
                value = load(at);
            }
            store(row + i, value);
            total += value;
        }
        if (!w.weight) continue;
        const float mean = sum(total) / float(w.d);
        Vec squares = {};
        for (int64_t i = 0; i < w.d; i += LANES) {
            const Vec off = load(row + i) - mean;
            squares = fused(off, off, squares);
        }
        const float inverse = 1.0f / std::sqrt(sum(squares) / float(w.d) + w.eps);
        for (int64_t i = 0; i < w.d; i += LANES)
            store(row + i, fused((load(row + i) - mean) * inverse, load(w.weight + i), load(w.bias + i)));
        put(w.out, t, row, w.d);
    }
}

// ------------------------------------------------------------------ activations

template <int KIND>
void activate(const Activate& w, int64_t begin, int64_t end) {
    float* row = scratch(w.d);
    for (int64_t t = begin; t < end; t++) {
        for (int64_t i = 0; i < w.d; i += LANES) {
            Vec value = load(w.raw, t, i);
            if (KIND == RELU) value = most(value, all(0));
            if (KIND == SILU) value *= sigmoid(value);
            if (KIND == GELU) value = gelu(value);
            if (KIND == GATED) {
                const Vec gate = load(w.raw, t, w.d + i);
                value *= gate * sigmoid(gate);
            }
            store(row + i, value);
        }
        put(w.out, t, row, w.d);
    }
}

void activation(const Activate& w, int64_t begin, int64_t end) {
    if (w.kind == NONE) activate<NONE>(w, begin, end);
    if (w.kind == RELU) activate<RELU>(w, begin, end);
    if (w.kind == SILU) activate<SILU>(w, begin, end);
    if (w.kind == GELU) activate<GELU>(w, begin, end);
    if (w.kind == GATED) activate<GATED>(w, begin, end);
}

// ------------------------------------------------------------------ convolutions

void causal(const Causal& w, int64_t begin, int64_t end) {
    float* row = scratch(w.d);
    for (int64_t t = begin; t < end; t++) {
        const int64_t past = std::min(w.age[t], w.width - 1);
        for (int64_t i = 0; i < w.d; i += LANES) {
            Vec value = load(w.bias + i);
            for (int64_t back = 0; back <= past; back++)
                value = fused(load(w.x + (t - back) * w.d + i), load(w.taps + (w.width - 1 - back) * w.d + i), value);
            store(row + i, value);
        }
        put(w.out, t, row, w.d);
    }
}

// ABREAST outputs: `at(y, x)` returns the input of the first one's tap; the next one's is two further.
template <typename At, typename Put>
INLINE void convolve(const Vec* weight, Vec bias, const At& at, const Put& put) {
    Vec total[ABREAST];
    UNROLLED for (int64_t j = 0; j < ABREAST; j++) total[j] = bias;
    UNROLLED for (int64_t y = 0; y < 3; y++)
        UNROLLED for (int64_t x = 0; x < 3; x++)
            UNROLLED for (int64_t j = 0; j < ABREAST; j++)
                total[j] = fused(weight[3 * y + x], at(y, 2 * j + x), total[j]);
    UNROLLED for (int64_t j = 0; j < ABREAST; j++) put(j, total[j]);
}

INLINE void taps(const float* weights, int64_t d, int64_t i, Vec* to) {
    for (int j = 0; j < 9; j++) to[j] = load(weights + j * d + i);
}

// One output time. Three input times are computed first, one vector of channels after the other, with a zero band
// before and after.
void strided(const Strided& w, int64_t begin, int64_t end) {
    const int64_t bands = (w.bands + 1) / 2, room = 2 * rounded_up(bands) + 2 * ABREAST;
    float *rows = scratch(rounded_up(bands) * w.d + 3 * room * LANES), *inputs = rows + rounded_up(bands) * w.d;
    const auto band = [&](int64_t y, int64_t f) __attribute__((always_inline)) {
        return inputs + (y * room + 1 + f) * LANES;
    };
    std::memset(inputs, 0, 3 * room * LANES * sizeof(float));
    for (int64_t t = begin; t < end; t++) {
        for (int64_t i = 0; i < w.d; i += LANES) {
            Vec weight[9] = {};
            if (w.frames) taps(w.first, w.d, i, weight);
            for (int64_t y = 0; y < 3; y++) {
                const int64_t time = 2 * t + y - 1;
                if (time < 0 || time >= w.times || !w.heard[time]) {
                    for (int64_t f = 0; f < w.bands; f++) store(band(y, f), all(0));
                } else if (w.frames) {
                    const Vec bias = load(w.first_bias + i);
                    for (int64_t f = 0; f < w.bands; f += ABREAST) {
                        const float* frame = w.frames + 2 * time * w.frame + 2 * f;
                        convolve(
                            weight, bias,
                            [&](int64_t row, int64_t column)
                                __attribute__((always_inline)) { return all(frame[row * w.frame + column]); },
                            [&](int64_t j, Vec value) __attribute__((always_inline)) {
                                if (f + j < w.bands) store(band(y, f + j), most(value, all(0)));
                            });
                    }
                } else {
                    for (int64_t f = 0; f < w.bands; f++)
                        store(band(y, f), most(load(w.raw, time * w.bands + f, i), all(0)));
                }
            }
            taps(w.weight, w.d, i, weight);
            const Vec bias = load(w.bias + i);
            for (int64_t f = 0; f < bands; f += ABREAST)
                convolve(
                    weight, bias,
                    [&](int64_t row, int64_t column)
                        __attribute__((always_inline)) { return load(band(row, 2 * f + column - 1)); },
                    [&](int64_t j, Vec value)
                        __attribute__((always_inline)) { store(rows + (f + j) * w.d + i, value); });
        }
        for (int64_t f = 0; f < bands; f++) put(w.out, t * bands + f, rows + f * w.d, w.d);
    }
}
