// The path that this CPU chooses against the scalar one, on random numbers: prints the largest difference over the
// largest result of each kernel, exits with 1 if one is above what sums in another order, or roundings to bfloat16, may
// give. For CPUs that tests are emulated on.

#include <cstdio>
#include <random>

#include "../../polyphi/kernels/native.h"

using polyphi::Parallel;

extern "C" {
int polyphi_isa();
int polyphi_pairs();
void polyphi_linear(int, int, const void*, const uint8_t*, const float*, const void*, void*, int, int, int64_t,
                    int64_t, int64_t, const uint8_t*, const float*, const uint8_t*, const float*, int64_t, float,
                    Parallel, int);
void polyphi_half(int, const void*, const uint16_t*, void*, int, float, float, int64_t, int64_t, Parallel, int);
void polyphi_norm(int, int, const void*, const void*, void*, int64_t, int64_t, float, Parallel, int);
void polyphi_gate(int, int, const void*, void*, int64_t, int64_t, Parallel, int);
void polyphi_turn(int, int, const void*, int64_t, const void*, const void*, void*, int64_t, int, int, int, Parallel,
                  int);
void polyphi_attend(int, int, int, const void*, const void*, const void*, void*, int64_t, int64_t, int64_t, void*,
                    void*, float*, float*, int64_t, int, int, int, int, const int64_t*, const int64_t*, const int64_t*,
                    const int32_t*, Parallel, int);
}

constexpr int64_t RANK = 9;  // of an adapter, whose weights are the first bytes of the other
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
    float at(size_t i) { return bf16 ? polyphi::from_bf16(halves()[i]) : raw[i]; }
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
        double most = 1e-9, off = 0;
        for (size_t i = 0; i < count; i++) {
            most = std::max<double>(most, std::fabs(plain.at(i)));
            const double difference = std::fabs(plain.at(i) - chosen.at(i));
            off = std::max(off, std::isnan(difference) ? INFINITY : difference);  // a maximum passes over what is none
        }
        worst = std::max(worst, off / most);
    }
};

void products(Kernel& kernel) {
    for (int turn = 0; turn < 60; turn++) {
        const int64_t m = 1 + byte(18), n = 1 + byte(149), k = 32 * (1 + byte(5));
        Numbers x = random(false, m * k), row = random(false, n + RANK), onto = random(false, m * n);
        Numbers halves = random(true, n * k);
        std::vector<uint8_t> packed((n + 31) / 32 * 32 * k);  // any bytes but 0 are a weight
        for (auto& value : packed) value = uint8_t(1 + byte(254));
        for (int bits : {4, 8})
            kernel.compare(false, m * n, [&](int isa, void* to) {
                const float* rows = row.raw.data();
                polyphi_linear(isa, bits, x.data(), packed.data(), rows, onto.data(), to, 0, 0, m, n, k, packed.data(),
                               rows, packed.data(), rows, RANK, 0.01f, nullptr, THREADS);
            });
        const int64_t gated = n / 64 * 64;
        for (int bits : {4, 8})
            kernel.compare(false, m * gated / 2, [&](int isa, void* to) {
                polyphi_linear(isa, bits, x.data(), packed.data(), row.raw.data(), nullptr, to, 0, 1, m, gated, k,
                               nullptr, nullptr, nullptr, nullptr, 0, 0, nullptr, THREADS);
            });
        kernel.compare(false, n, [&](int isa, void* to) {
            polyphi_half(isa, x.data(), halves.halves(), to, 0, 0, 1, n, k, nullptr, THREADS);
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

int main() {
    // bfloat16 keeps 8 bits; where pairs of it are multiplied, weights of a softmax are rounded too.
    Kernel kernels[] = {{"products", 1e-5}, {"blocks", 1e-5}, {"blocks in bfloat16", 1e-2}, {"attention", 1e-5},
                        {"attention in bfloat16", 1e-2}, {"attention over 8 bits", 1e-5},
                        {"attention in bfloat16 over 8 bits", 1e-2}};
    products(kernels[0]);
    for (const bool bf16 : {false, true}) {
        blocks(kernels[1 + bf16], bf16);
        for (const bool eight : {false, true}) attention(kernels[3 + 2 * eight + bf16], bf16, eight);
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
