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

// GELU in its tanh form is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
INLINE Vec gelu(Vec x) {
    return x / (exponential(x * (x * x * -0.0713548162726f - 1.5957691216057f)) + 1.0f);
}

template <class Kind>
void gelu_row(const Kind* x, Kind* y, int64_t d) {
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) store(y + i, gelu(load(x + i)));
    for (; i < d; i++) put(y + i, gelu(all(one(x[i])))[0]);
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

// The gradient of a row of the norm: dx, and the weight's, which is added to `of_weight`.
template <class Kind>
void norm_row_backward(const Kind* x, const Kind* weight, const Kind* dy, Kind* dx, float* of_weight, int64_t d,
                       float eps) {
    Vec squares = all(0), along = all(0);
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) {
        squares += load(x + i) * load(x + i);
        along += load(x + i) * load(weight + i) * load(dy + i);
    }
    float square = sum(squares), product = sum(along);
    for (; i < d; i++) {
        square += one(x[i]) * one(x[i]);
        product += one(x[i]) * one(weight[i]) * one(dy[i]);
    }
    const float inverse = 1.0f / std::sqrt(square / float(d) + eps);
    const float share = product * inverse * inverse / float(d);
    for (i = 0; i + LANES <= d; i += LANES) {
        const Vec of = load(x + i), gradient = load(dy + i);
        store(dx + i, (load(weight + i) * gradient - of * share) * inverse);
        store(of_weight + i, load(of_weight + i) + gradient * of * inverse);
    }
    for (; i < d; i++) {
        put(dx + i, (one(weight[i]) * one(dy[i]) - one(x[i]) * share) * inverse);
        of_weight[i] += one(dy[i]) * one(x[i]) * inverse;
    }
}

template <class Kind>
void gate_row_backward(const Kind* gate, const Kind* up, const Kind* dy, Kind* of_gate, Kind* of_up, int64_t d) {
    const auto gradients = [](Vec gate, Vec up, Vec dy, Vec& of_gate, Vec& of_up) {
        const Vec sigmoid = all(1.0f) / (exponential(-gate) + 1.0f);
        of_up = dy * gate * sigmoid;
        of_gate = dy * up * sigmoid * (gate * (all(1.0f) - sigmoid) + 1.0f);
    };
    Vec a, b;
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) {
        gradients(load(gate + i), load(up + i), load(dy + i), a, b);
        store(of_gate + i, a);
        store(of_up + i, b);
    }
    for (; i < d; i++) {
        gradients(all(one(gate[i])), all(one(up[i])), all(one(dy[i])), a, b);
        put(of_gate + i, a[0]);
        put(of_up + i, b[0]);
    }
}

INLINE Vec gelu_gradient(Vec x, Vec dy) {
    const Vec twice = x * (x * x * 0.0713548162726f + 1.5957691216057f);  // 2 u
    const Vec slope = x * x * 0.2140644488178f + 1.5957691216057f;
    // Of the sigmoid and of 1 - sigmoid, the larger one is `more`.
    const Vec power = exponential(twice < all(0) ? twice : -twice), more = all(1.0f) / (power + 1.0f);
    const Vec less = power * more;
    return dy * ((twice < all(0) ? less : more) + x * slope * less * more);
}

template <class Kind>
void gelu_row_backward(const Kind* x, const Kind* dy, Kind* dx, int64_t d) {
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) store(dx + i, gelu_gradient(load(x + i), load(dy + i)));
    for (; i < d; i++) put(dx + i, gelu_gradient(all(one(x[i])), all(one(dy[i])))[0]);
}
