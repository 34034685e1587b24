// The kernels of blocks.cpp over one set of instructions.

template <class Kind>
void norm_row(const Kind* x, const Kind* weight, Kind* y, int64_t d, float eps) {
    Vec total = all(0);
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) total += load(x + i) * load(x + i);
    float squares = sum(total);
    for (; i < d; i++) squares += one(x[i]) * one(x[i]);
    const float inverse = 1.0f / std::sqrt(squares / float(d) + eps);
    for (i = 0; i + LANES <= d; i += LANES) store(y + i, kept(y, load(x + i) * inverse) * load(weight + i));
    for (; i < d; i++) {
        put(y + i, one(x[i]) * inverse);
        put(y + i, one(y[i]) * one(weight[i]));
    }
}

template <class Kind>
void gate_row(const Kind* gate, const Kind* up, Kind* y, int64_t d) {
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) store(y + i, gated(load(gate + i), load(up + i)));
    for (; i < d; i++) put(y + i, gated(all(one(gate[i])), all(one(up[i])))[0]);
}

template <class Kind>
void turn_row(const Kind* x, const Kind* cos, const Kind* sin, Kind* y, int heads, int d, int pairs) {
    for (int head = 0; head < heads; head++, x += d, y += d) {
        int i = 0;
        for (; i + LANES <= pairs; i += LANES) {
            const Vec first = load(x + i), second = load(x + pairs + i), c = load(cos + i), s = load(sin + i);
            store(y + i, first * c - second * s);
            store(y + pairs + i, second * c + first * s);
        }
        for (; i < pairs; i++) {
            const float first = one(x[i]), second = one(x[pairs + i]), c = one(cos[i]), s = one(sin[i]);
            put(y + i, first * c - second * s);
            put(y + pairs + i, second * c + first * s);
        }
        std::memcpy(y + 2 * pairs, x + 2 * pairs, size_t(d - 2 * pairs) * sizeof(Kind));
    }
}
