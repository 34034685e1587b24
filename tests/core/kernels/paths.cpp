// Compares the path that this CPU chooses with the scalar one on random numbers; the kernels of encoder.cpp, which have
// one path on Arm, with their formulas in double precision. Prints the largest difference of each kernel relative to
// its largest result. Exits with 1 if a difference is larger than another order of float operations, or rounding to
// bfloat16 or 8 bits, explains. For emulated CPUs.

#include <cstdio>
#include <random>

#include "../../../polyphi/kernels/packed.h"

using polyphi::Parallel;

extern "C" {
int polyphi_isa();
int polyphi_pairs();
void polyphi_linear(int, int, int, const void*, const uint8_t*, const float*, const void*, void*, int, int, int64_t,
                    int64_t, int64_t, const uint8_t*, const float*, const uint8_t*, const float*, int64_t, float,
                    Parallel, int);
void polyphi_linear_rows(int, const uint8_t*, const float*, const uint8_t*, const float*, void*, int64_t, int64_t,
                         int64_t, Parallel, int);
void polyphi_bf16(int, const void*, const uint16_t*, const uint16_t*, void*, int, float, float, int64_t, int64_t,
                  int64_t, Parallel, int);
void polyphi_norm(int, int, const void*, const void*, void*, int64_t, int64_t, float, Parallel, int);
void polyphi_gate(int, int, const void*, void*, int64_t, int64_t, Parallel, int);
void polyphi_turn(int, int, const void*, int64_t, const void*, const void*, void*, int64_t, int, int, int, Parallel,
                  int);
void polyphi_norm_backward(int, int, const void*, const void*, const void*, void*, float*, int64_t, int64_t, int64_t,
                           float, Parallel, int);
void polyphi_gate_backward(int, int, const void*, const void*, void*, int64_t, int64_t, Parallel, int);
void polyphi_self_attention(int, int, const void*, const void*, const void*, const int64_t*, const int64_t*,
                            const int64_t*, const int64_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int, const float*, float*,
                            void*, Parallel, int);
void polyphi_self_attention_backward(int, int, const void*, const void*, const void*, const int64_t*, const int64_t*,
                                 const int64_t*, const int64_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int, const float*, float*,
                                 const void*, void*, void*, void*, float*, Parallel, int);
void polyphi_cross_entropy(int, int, void*, const int64_t*, float*, int64_t, int64_t, int, Parallel, int);
void polyphi_attend(int, int, int, const void*, const void*, const void*, void*, int64_t, int64_t, int64_t, void*,
                    void*, float*, float*, int64_t, int, int, int, int, const int64_t*, const int64_t*, const int64_t*,
                    const int32_t*, Parallel, int);
void polyphi_attention(int, int, const void*, const void*, const void*, int64_t, const float*, const float*,
                       const float*, const float*, void*, const int64_t*, const int64_t*, const int64_t*, int64_t,
                       int64_t, int64_t, const float*, int64_t, Parallel, int);
void polyphi_layer_norm(int, const void*, const void*, int64_t, const float*, const float*, float, void*, const float*,
                        const float*, float, uint8_t*, float*, void*, int64_t, int64_t, Parallel, int);
void polyphi_activate(int, int, const void*, int64_t, const float*, const float*, uint8_t*, float*, void*, int64_t,
                      int64_t, Parallel, int);
void polyphi_causal(int, const void*, const float*, const float*, const int64_t*, int64_t, uint8_t*, float*, int64_t,
                    int64_t, Parallel, int);
void polyphi_strided(int, const void*, int64_t, const float*, const float*, const float*, int64_t, const float*,
                     const float*, const uint8_t*, const float*, const float*, uint8_t*, float*, void*, int64_t,
                     int64_t, int64_t, Parallel, int);
}

constexpr int64_t RANK = 9;  // of an adapter
constexpr int THREADS = 2;

std::mt19937 draw(0);
int byte(int most) { return int(draw() % unsigned(most + 1)); }

// Numbers as kernels take them: float32, or bfloat16 two to a float.
struct Numbers {
    bool bf16;
    std::vector<float> raw;

    Numbers(bool bf16, size_t count) : bf16(bf16), raw(bf16 ? (count + 1) / 2 : count) {}
    void* data() { return raw.data(); }
    uint16_t* halves() { return reinterpret_cast<uint16_t*>(raw.data()); }
    const uint16_t* halves() const { return reinterpret_cast<const uint16_t*>(raw.data()); }
    float at(size_t i) const { return bf16 ? polyphi::from_bf16(halves()[i]) : raw[i]; }
};

Numbers random(bool bf16, size_t count) {
    std::normal_distribution<float> normal;
    Numbers made(bf16, count);
    for (size_t i = 0; i < count; i++) {
        if (bf16)
            made.halves()[i] = polyphi::to_bf16(normal(draw));
        else
            made.raw[i] = normal(draw);
    }
    return made;
}

// `run` by both paths, which fills so many results.
struct Kernel {
    const char* name;
    double allowed, worst = 0;

    template <typename Run>
    void compare(bool bf16, size_t count, const Run& run) {
        Numbers plain(bf16, count), chosen(bf16, count);
        run(polyphi::SCALAR, plain.data());
        run(polyphi_isa(), chosen.data());
        difference(count, [&](size_t i) { return plain.at(i); }, [&](size_t i) { return chosen.at(i); });
    }

    // `expected(i)` and `result(i)` for each i below `count`.
    template <typename Expected, typename Result>
    void difference(size_t count, const Expected& expected, const Result& result) {
        double most = 1e-9, off = 0;
        for (size_t i = 0; i < count; i++) {
            most = std::max<double>(most, std::fabs(expected(i)));
            const double error = std::fabs(expected(i) - result(i));
            off = std::max(off, std::isnan(error) ? INFINITY : error);  // std::max ignores NaN
        }
        worst = std::max(worst, off / most);
    }
};

// Bytes of a packed weight [n k]: any bytes but 0 are a weight.
std::vector<uint8_t> random_weight(int bits, int64_t n, int64_t k) {
    std::vector<uint8_t> packed(polyphi::up(n, polyphi::PANEL) * polyphi::panel_bytes(bits, polyphi::up(k, polyphi::BLOCK)));
    for (auto& value : packed) value = uint8_t(1 + byte(254));
    return packed;
}

void products(Kernel& kernel) {
    for (int turn = 0; turn < 60; turn++) {
        const int64_t m = 1 + byte(18), n = 1 + byte(149), k = 32 * (1 + byte(5));
        Numbers x = random(false, m * k), row = random(false, n + RANK), onto = random(false, m * n);
        const auto a = random_weight(8, RANK, k), b = random_weight(8, n, RANK);
        const int64_t gated = n / 64 * 64;
        for (int bits : {4, 6, 8}) {
            const auto packed = random_weight(bits, n, k);
            const int rotated = turn % 2;
            kernel.compare(false, m * n, [&](int isa, void* to) {
                const float* rows = row.raw.data();
                polyphi_linear(isa, bits, rotated, x.data(), packed.data(), rows, onto.data(), to, 0, 0, m, n, k,
                               a.data(), rows, b.data(), rows, RANK, 0.01f, nullptr, THREADS);
            });
            kernel.compare(false, m * gated / 2, [&](int isa, void* to) {
                polyphi_linear(isa, bits, rotated, x.data(), packed.data(), row.raw.data(), nullptr, to, 0, 1, m, gated,
                               k, nullptr, nullptr, nullptr, nullptr, 0, 0, nullptr, THREADS);
            });
        }
    }
}

// Products of 8 bits without an adapter: sums of integers, which fused multiply-adds sum up in the same order on every
// path.
void exact_products(Kernel& kernel) {
    for (int turn = 0; turn < 40; turn++) {
        const int64_t m = turn % 4 ? 1 + byte(18) : 120 + byte(20), n = 1 + byte(149), k = 1 + byte(199);
        Numbers x = random(false, m * k), row = random(false, n), scale = random(false, m);
        const auto packed = random_weight(8, n, k);
        std::vector<uint8_t> q(m * k);
        for (auto& value : q) value = uint8_t(1 + byte(254));
        kernel.compare(false, m * n, [&](int isa, void* to) {
            polyphi_linear(isa, 8, turn % 2, x.data(), packed.data(), row.raw.data(), nullptr, to, 0, 0, m, n, k, nullptr,
                           nullptr, nullptr, nullptr, 0, 0, nullptr, THREADS);
        });
        kernel.compare(true, m * n, [&](int isa, void* to) {
            polyphi_linear_rows(isa, q.data(), scale.raw.data(), packed.data(), row.raw.data(), to, m, n, k, nullptr,
                                THREADS);
        });
    }
}

// 4 bits by many tokens, for which some paths round weights to 8 bits.
void many_by_four(Kernel& kernel) {
    for (int turn = 0; turn < 4; turn++) {
        const int64_t m = 128 + byte(20), n = 1 + byte(149), k = 32 * (1 + byte(5));
        Numbers x = random(false, m * k), row = random(false, n);
        const auto packed = random_weight(4, n, k);
        kernel.compare(false, m * n, [&](int isa, void* to) {
            polyphi_linear(isa, 4, turn % 2, x.data(), packed.data(), row.raw.data(), nullptr, to, 0, 0, m, n, k, nullptr,
                           nullptr, nullptr, nullptr, 0, 0, nullptr, THREADS);
        });
    }
}

// Weights in bfloat16, with few tokens and many, with and without bias; sums that are added to `y`.
void half_products(Kernel& kernel, bool bf16) {
    for (int turn = 0; turn < 40; turn++) {
        const int64_t m = turn % 2 ? 1 + byte(15) : 17 + byte(100), n = 1 + byte(149), k = 1 + byte(299);
        Numbers x = random(bf16, m * k), weight = random(true, n * k), bias = random(true, n), y = random(bf16, m * n);
        for (const uint16_t* shift : {static_cast<const uint16_t*>(nullptr), std::as_const(bias).halves()})
            kernel.compare(bf16, m * n, [&](int isa, void* to) {
                polyphi_bf16(isa, x.data(), weight.halves(), shift, to, bf16, 0, 1, m, n, k, nullptr, THREADS);
            });
        kernel.compare(bf16, m * n, [&](int isa, void* to) {
            std::memcpy(to, y.data(), y.raw.size() * sizeof(float));
            polyphi_bf16(isa, x.data(), weight.halves(), nullptr, to, bf16, 1, -0.5f, m, n, k, nullptr, THREADS);
        });
    }
}

void blocks(Kernel& kernel, bool bf16) {
    for (int turn = 0; turn < 20; turn++) {
        const int64_t tokens = 1 + byte(30), heads = 1 + byte(3), pairs = 8 * (1 + byte(2));
        const int64_t d = 2 * pairs + 16 * byte(2), width = heads * d;
        Numbers x = random(bf16, tokens * 2 * width), weight = random(bf16, width);
        Numbers cos = random(bf16, tokens * pairs), sin = random(bf16, tokens * pairs);
        kernel.compare(bf16, tokens * width, [&](int isa, void* to) {
            polyphi_norm(isa, bf16, x.data(), weight.data(), to, tokens, width, 1e-5f, nullptr, THREADS);
        });
        kernel.compare(bf16, tokens * width, [&](int isa, void* to) {
            polyphi_gate(isa, bf16, x.data(), to, tokens, width, nullptr, THREADS);
        });
        Numbers gradients = random(bf16, tokens * width);
        kernel.compare(bf16, tokens * width, [&](int isa, void* to) {
            std::vector<float> of_weight(4 * width);
            polyphi_norm_backward(isa, bf16, x.data(), weight.data(), gradients.data(), to, of_weight.data(), 8, tokens,
                                  width, 1e-5f, nullptr, THREADS);
        });
        kernel.compare(bf16, tokens * 2 * width, [&](int isa, void* to) {
            polyphi_gate_backward(isa, bf16, x.data(), gradients.data(), to, tokens, width, nullptr, THREADS);
        });
        kernel.compare(bf16, tokens * width, [&](int isa, void* to) {
            polyphi_turn(isa, bf16, x.data(), 2 * width, cos.data(), sin.data(), to, tokens, int(heads), int(d),
                         int(pairs), nullptr, THREADS);
        });
    }
}

// A prompt behind some tokens, a word, and guesses; `eight`: keys and values of 8 bits.
void attention(Kernel& kernel, bool bf16, bool eight) {
    constexpr int64_t BLOCK = 32;
    for (int turn = 0; turn < 8; turn++) {
        const int heads = 6, kv_heads = 2, d = 16 * (1 + byte(3));
        const int64_t fresh[] = {30 + byte(60), 1, 3}, before[] = {byte(200), byte(700), byte(100)};
        int64_t starts[4] = {}, ends[3], tables[3];
        std::vector<int32_t> held;
        for (int s = 0; s < 3; s++) {
            starts[s + 1] = starts[s] + fresh[s];
            ends[s] = before[s] + fresh[s];
            tables[s] = int64_t(held.size());
            for (int64_t b = 0; b * BLOCK < ends[s]; b++) held.push_back(int32_t(held.size()));
        }
        std::shuffle(held.begin(), held.end(), draw);
        const int64_t tokens = starts[3], rows = int64_t(held.size()) * BLOCK, all = kv_heads * rows;
        Numbers q = random(bf16, tokens * heads * d), k = random(bf16, tokens * kv_heads * d), v = k;
        std::vector<int8_t> bytes(eight ? all * d : 0);
        for (auto& value : bytes) value = int8_t(byte(254) - 127);
        const std::vector<float> scales(eight ? all : 0, 0.01f);
        const Numbers numbers = random(bf16, eight ? 0 : all * d);
        kernel.compare(bf16, tokens * heads * d, [&](int isa, void* to) {
            auto keys = bytes, values = bytes;
            auto key_scales = scales, value_scales = scales;
            auto key_numbers = numbers, value_numbers = numbers;
            polyphi_attend(isa, polyphi_pairs(), bf16, q.data(), k.data(), v.data(), to, heads * d, kv_heads * d,
                           kv_heads * d, eight ? keys.data() : key_numbers.data(),
                           eight ? values.data() : value_numbers.data(), eight ? key_scales.data() : nullptr,
                           eight ? value_scales.data() : nullptr, rows, heads, kv_heads, d, 3, starts, ends, tables,
                           held.data(), nullptr, THREADS);
        });
    }
}

// Attention with gradients, the result and then the gradients of queries, keys, values and distances.
void training_attention(Kernel& kernel, bool bf16) {
    for (int turn = 0; turn < 16; turn++) {
        const int64_t heads = 4, kv_heads = 2, d = 4 * (1 + byte(20)), sequences = 3, longest = 60;
        int64_t starts[sequences], counts[sequences], rows = 0;
        for (int s = 0; s < sequences; s++) {
            starts[s] = rows;
            rows += counts[s] = 1 + byte(int(longest) - 1);
        }
        const int64_t many = rows * heads * d, few = rows * kv_heads * d, spread = heads * (2 * longest - 1);
        const int64_t strides[] = {heads * d, kv_heads * d, kv_heads * d};
        Numbers q = random(bf16, many), k = random(bf16, few), v = random(bf16, few), gradients = random(bf16, many);
        Numbers distances = random(false, spread);
        const float* biases = turn & 1 ? distances.raw.data() : nullptr;
        const int causal = turn >> 1 & 1;
        int64_t keys[sequences];
        for (int s = 0; s < sequences; s++) keys[s] = causal ? counts[s] : std::max<int64_t>(1, counts[s] - byte(9));
        const auto run = [&](int isa, Numbers& y, Numbers& dq, Numbers& dk, Numbers& dv, float* of_distances) {
            std::vector<float> sums(rows * heads);
            polyphi_self_attention(isa, bf16, q.data(), k.data(), v.data(), strides, starts, counts, keys, sequences,
                                   heads, kv_heads, d, longest, causal, biases, sums.data(), y.data(), nullptr,
                                   THREADS);
            polyphi_self_attention_backward(isa, bf16, q.data(), k.data(), v.data(), strides, starts, counts, keys,
                                            sequences, heads, kv_heads, d, longest, causal, biases, sums.data(),
                                            gradients.data(), dq.data(), dk.data(), dv.data(),
                                            biases ? of_distances : nullptr, nullptr, THREADS);
        };
        struct Found {
            Numbers y, dq, dk, dv, distances;
        };
        const auto found = [&](int isa) {
            Found made{{bf16, size_t(many)}, {bf16, size_t(many)}, {bf16, size_t(few)}, {bf16, size_t(few)},
                       {false, size_t(sequences * spread)}};
            run(isa, made.y, made.dq, made.dk, made.dv, made.distances.raw.data());
            return made;
        };
        const Found plain = found(polyphi::SCALAR), chosen = found(polyphi_isa());
        const auto compare = [&](const Numbers& a, const Numbers& b, int64_t count) {
            kernel.difference(size_t(count), [&](size_t i) { return a.at(i); }, [&](size_t i) { return b.at(i); });
        };
        compare(plain.y, chosen.y, many);
        compare(plain.dq, chosen.dq, many);
        compare(plain.dk, chosen.dk, few);
        compare(plain.dv, chosen.dv, few);
        compare(plain.distances, chosen.distances, sequences * spread);
    }
}

// Losses, and the gradients that replace the logits.
void cross_entropy(Kernel& kernel, bool bf16) {
    for (int turn = 0; turn < 16; turn++) {
        const int64_t rows = 1 + byte(5), vocabulary = 1 + byte(150);
        const Numbers logits = random(bf16, rows * vocabulary);
        std::vector<int64_t> labels(rows);
        for (auto& label : labels) label = byte(int(vocabulary) - 1);
        Numbers plain = logits, chosen = logits, losses(false, rows), others(false, rows);
        const auto run = [&](int isa, Numbers& of, Numbers& to) {
            polyphi_cross_entropy(isa, bf16, of.data(), labels.data(), to.raw.data(), rows, vocabulary, 1, nullptr,
                                  THREADS);
        };
        run(polyphi::SCALAR, plain, losses);
        run(polyphi_isa(), chosen, others);
        const size_t count = size_t(rows * vocabulary);
        kernel.difference(count, [&](size_t i) { return plain.at(i); }, [&](size_t i) { return chosen.at(i); });
        kernel.difference(size_t(rows), [&](size_t i) { return losses.at(i); }, [&](size_t i) { return others.at(i); });
    }
}

// Attention in float32 of segments whose last rows are no keys, with and without `distances`, scales and biases.
void encoder_attention(Kernel& kernel) {
    for (int turn = 0; turn < 24; turn++) {
        const int64_t heads = 1 + byte(2), d = 1 + byte(95), segments = 3, longest = 80;
        int64_t starts[segments], queries[segments], keys[segments], rows = 0;
        for (int s = 0; s < segments; s++) {
            starts[s] = rows;
            queries[s] = 1 + byte(int(longest) - 1);
            keys[s] = s == 1 && turn % 8 == 0 ? 0 : std::max<int64_t>(1, queries[s] - byte(9));
            rows += queries[s];
        }
        const int64_t width = heads * d, stride = 3 * width;
        Numbers qkv = random(true, rows * stride), scale = random(false, rows), bias = random(false, stride);
        Numbers distances = random(false, heads * (2 * longest - 1));
        const float *scales = turn & 1 ? scale.raw.data() : nullptr, *shift = turn & 1 ? bias.raw.data() : nullptr;
        const uint16_t* q = qkv.halves();
        kernel.compare(true, rows * width, [&](int isa, void* to) {
            polyphi_attention(isa, 0, q, q + width, q + 2 * width, stride, scales, shift, shift ? shift + width : shift,
                              shift ? shift + 2 * width : shift, to, starts, queries, keys, segments, heads, d,
                              turn & 2 ? distances.raw.data() : nullptr, longest, nullptr, THREADS);
        });
    }
}

// Rows of an int8 product: bfloat16 values times a scale of the row plus a bias of the column; and what kernels return,
// in 8 bits and in bfloat16.
struct Product {
    int64_t width;
    Numbers y, scale, bias;

    Product(int64_t rows, int64_t width)
        : width(width), y(random(true, rows * width)), scale(random(false, rows)), bias(random(false, width)) {}
    double at(int64_t row, int64_t column) const {
        return double(y.at(row * width + column)) * scale.at(row) + bias.at(column);
    }
};

struct Rows {
    int64_t width;
    std::vector<uint8_t> q;
    Numbers scale, y;

    Rows(int64_t rows, int64_t width)
        : width(width), q(rows * width), scale(false, rows), y(true, rows * width) {}
    double eight(size_t i) const { return (double(q[i]) - 128) * scale.at(i / width); }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

void layer_norms(Kernel& kernel) {
    for (int turn = 0; turn < 20; turn++) {
        const int64_t rows = 1 + byte(20), d = 16 * (1 + byte(5));
        Numbers x = random(true, rows * d), weight = random(false, d), shift = random(false, d), sum(true, rows * d);
        Product product(rows, d);
        Rows out(rows, d);
        polyphi_layer_norm(polyphi_isa(), x.data(), product.y.data(), d, product.scale.raw.data(),
                           product.bias.raw.data(), 0.5f, sum.data(), weight.raw.data(), shift.raw.data(), 1e-5f,
                           out.q.data(), out.scale.raw.data(), out.y.data(), rows, d, nullptr, THREADS);
        kernel.difference(
            rows * d, [&](size_t i) { return x.at(i) + 0.5 * product.at(i / d, i % d); },
            [&](size_t i) { return sum.at(i); });
        std::vector<double> expected(rows * d);
        for (int64_t t = 0; t < rows; t++) {
            double mean = 0, squares = 0;
            for (int64_t i = 0; i < d; i++) mean += sum.at(t * d + i) / double(d);
            for (int64_t i = 0; i < d; i++) squares += std::pow(sum.at(t * d + i) - mean, 2) / double(d);
            for (int64_t i = 0; i < d; i++)
                expected[t * d + i] =
                    (sum.at(t * d + i) - mean) / std::sqrt(squares + 1e-5) * weight.at(i) + shift.at(i);
        }
        kernel.difference(rows * d, [&](size_t i) { return expected[i]; }, [&](size_t i) { return out.eight(i); });
        kernel.difference(rows * d, [&](size_t i) { return expected[i]; }, [&](size_t i) { return out.y.at(i); });
    }
}

void activations(Kernel& kernel) {
    for (int turn = 0; turn < 40; turn++) {
        const int activation = turn % 5;  // none, relu, silu, gelu, gated
        const int64_t rows = 1 + byte(20), d = 16 * (1 + byte(5));
        Product product(rows, activation == 4 ? 2 * d : d);
        Rows out(rows, d);
        polyphi_activate(polyphi_isa(), activation, product.y.data(), product.width, product.scale.raw.data(),
                         product.bias.raw.data(), out.q.data(), out.scale.raw.data(), out.y.data(), rows, d, nullptr,
                         THREADS);
        const auto expected = [&](size_t i) {
            const double x = product.at(i / d, i % d);
            switch (activation) {
                case 1: return std::max(x, 0.0);
                case 2: return x * sigmoid(x);
                case 3: return x / 2 * (1 + std::tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
                case 4: return x * product.at(i / d, d + i % d) * sigmoid(product.at(i / d, d + i % d));
            }
            return x;
        };
        kernel.difference(rows * d, expected, [&](size_t i) { return out.eight(i); });
        kernel.difference(rows * d, expected, [&](size_t i) { return out.y.at(i); });
    }
}

void causal_convolutions(Kernel& kernel) {
    for (int turn = 0; turn < 20; turn++) {
        const int64_t rows = 1 + byte(20), width = 1 + byte(4), d = 16 * (1 + byte(3)), window = 1 + byte(8);
        Numbers x = random(true, rows * d), taps = random(false, width * d), bias = random(false, d);
        std::vector<int64_t> age(rows);
        for (int64_t t = 0; t < rows; t++) age[t] = t % window;
        Rows out(rows, d);
        polyphi_causal(polyphi_isa(), x.data(), taps.raw.data(), bias.raw.data(), age.data(), width, out.q.data(),
                       out.scale.raw.data(), rows, d, nullptr, THREADS);
        const auto expected = [&](size_t i) {
            const int64_t t = int64_t(i) / d, c = int64_t(i) % d;
            double value = bias.at(c);
            for (int64_t back = 0; back < width && back <= age[t]; back++)
                value += double(x.at((t - back) * d + c)) * taps.at((width - 1 - back) * d + c);
            return value;
        };
        kernel.difference(rows * d, expected, [&](size_t i) { return out.eight(i); });
    }
}

// Behind a product, and behind a convolution of one channel.
void strided_convolutions(Kernel& kernel) {
    for (int turn = 0; turn < 24; turn++) {
        const bool framed = turn % 2;
        const int64_t times = 1 + byte(8), bands = 1 + byte(8), d = 16 * (1 + byte(2));
        const int64_t frame = 2 * ((bands + 3) / 4 * 4) + 1;  // whole vectors of four bands are read
        const int64_t half_times = (times + 1) / 2, half_bands = (bands + 1) / 2, count = half_times * half_bands;
        Product product(times * bands, d);
        Numbers frames = random(false, (2 * times + 1) * frame), first = random(false, 9 * d);
        Numbers first_bias = random(false, d), weight = random(false, 9 * d), bias = random(false, d);
        std::vector<uint8_t> present(times);
        for (auto& value : present) value = byte(3) > 0;
        Rows out(count, d);
        const float *scales = product.scale.raw.data(), *shift = product.bias.raw.data();
        polyphi_strided(polyphi_isa(), framed ? nullptr : product.y.data(), d, framed ? nullptr : scales,
                        framed ? nullptr : shift, framed ? frames.raw.data() : nullptr, frame,
                        first.raw.data(), first_bias.raw.data(), present.data(), weight.raw.data(), bias.raw.data(),
                        out.q.data(), out.scale.raw.data(), out.y.data(), times, bands, d, nullptr, THREADS);
        const auto input = [&](int64_t time, int64_t band, int64_t c) {
            if (time < 0 || time >= times || band < 0 || band >= bands || !present[time]) return 0.0;
            if (!framed) return std::max(0.0, product.at(time * bands + band, c));
            double value = first_bias.at(c);
            for (int64_t tap = 0; tap < 9; tap++)
                value += double(first.at(tap * d + c)) * frames.at((2 * time + tap / 3) * frame + 2 * band + tap % 3);
            return std::max(0.0, value);
        };
        const auto expected = [&](size_t i) {
            const int64_t row = int64_t(i) / d, c = int64_t(i) % d, t = row / half_bands, f = row % half_bands;
            double value = bias.at(c);
            for (int64_t tap = 0; tap < 9; tap++)
                value += weight.at(tap * d + c) * input(2 * t + tap / 3 - 1, 2 * f + tap % 3 - 1, c);
            return value;
        };
        kernel.difference(count * d, expected, [&](size_t i) { return out.eight(i); });
        kernel.difference(count * d, expected, [&](size_t i) { return out.y.at(i); });
    }
}

int main() {
    // bfloat16 keeps 8 bits; where pairs of it are multiplied, weights of a softmax are rounded too. Rounding a row to
    // 8 bits is off by up to 1/254 of its largest value.
    Kernel kernels[] = {{"products", 1e-5},
                        {"products of 8 bits", 1e-12},
                        {"products of 4 bits with many tokens", 2e-2},
                        {"products by bfloat16", 1e-5},
                        {"products by bfloat16 in bfloat16", 1e-2},
                        {"blocks", 1e-5},
                        {"blocks in bfloat16", 1e-2},
                        {"attention", 1e-5},
                        {"attention in bfloat16", 1e-2},
                        {"attention over 8 bits", 1e-5},
                        {"attention in bfloat16 over 8 bits", 1e-2},
                        {"encoder attention", 5e-3},
                        {"layer norm", 5e-3},
                        {"activations", 5e-3},
                        {"causal convolutions", 5e-3},
                        {"strided convolutions", 5e-3},
                        {"attention with gradients", 1e-5},
                        {"attention with gradients, bf16", 0.01},
                        {"cross-entropy", 1e-5},
                        {"cross-entropy in bfloat16", 1e-2}};
    products(kernels[0]);
    exact_products(kernels[1]);
    many_by_four(kernels[2]);
    for (const bool bf16 : {false, true}) {
        half_products(kernels[3 + bf16], bf16);
        blocks(kernels[5 + bf16], bf16);
        for (const bool eight : {false, true}) attention(kernels[7 + 2 * eight + bf16], bf16, eight);
    }
    encoder_attention(kernels[11]);
    layer_norms(kernels[12]);
    activations(kernels[13]);
    causal_convolutions(kernels[14]);
    strided_convolutions(kernels[15]);
    for (const bool bf16 : {false, true}) {
        training_attention(kernels[16 + bf16], bf16);
        cross_entropy(kernels[18 + bf16], bf16);
    }
    std::printf("path %d, largest differences:", polyphi_isa());
    bool good = true;
    for (const Kernel& kernel : kernels) {
        std::printf(" %s %.2g;", kernel.name, kernel.worst);
        good = good && kernel.worst < kernel.allowed;
    }
    std::printf("\n");
    return !good;
}
