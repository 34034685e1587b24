// Every path that this CPU has against the scalar one, on random numbers: prints the largest differences over the largest
// results, exits with 1 if one is above what sums in another order may give. For CPUs that tests are emulated on.

#include <cstdio>
#include <random>

#include "../../polyphi/kernels/native.h"

extern "C" {
int polyphi_isa();
void polyphi_linear(int, int, const void*, const uint8_t*, const float*, const void*, void*, int, int, int64_t,
                    int64_t, int64_t, const uint8_t*, const float*, const uint8_t*, const float*, int64_t, float,
                    polyphi::Parallel, int);
void polyphi_half(int, const void*, const uint16_t*, void*, int, float, float, int64_t, int64_t, polyphi::Parallel, int);
}

constexpr int64_t RANK = 9;  // of an adapter, whose weights are the first bytes of the other

int main() {
    std::mt19937 draw(0), other(1);
    std::normal_distribution<float> normal;
    const auto byte = [&](int most) { return int(draw() % unsigned(most + 1)); };
    double worst = 0;
    for (int turn = 0; turn < 60; turn++) {
        const int64_t m = 1 + byte(18), n = 1 + byte(79), k = 32 * (1 + byte(5));
        std::vector<float> x(m * k), row(n + RANK), onto(m * n);
        for (auto* some : {&x, &row})
            for (float& value : *some) value = normal(draw);
        for (float& value : onto) value = normal(other);
        std::vector<uint8_t> packed((n + 31) / 32 * 32 * k);  // any bytes but 0 are a weight
        std::vector<uint16_t> halves(n * k);
        for (auto& value : packed) value = uint8_t(1 + byte(254));
        for (auto& value : halves) value = polyphi::to_bf16(normal(draw));
        for (int bits : {4, 8, 16}) {
            std::vector<float> found[2] = {std::vector<float>(m * n), std::vector<float>(m * n)};
            for (int which = 0; which < 2; which++) {
                const int isa = which ? polyphi_isa() : 0;
                if (bits == 16)
                    polyphi_half(isa, x.data(), halves.data(), found[which].data(), 0, 0, 1, n, k, nullptr, 2);
                else
                    polyphi_linear(isa, bits, x.data(), packed.data(), row.data(), onto.data(), found[which].data(), 0,
                                   0, m, n, k, packed.data(), row.data(), packed.data(), row.data(), RANK, 0.01f,
                                   nullptr, 2);
            }
            double most = 1e-9, off = 0;
            for (int64_t i = 0; i < m * n; i++) {
                most = std::max<double>(most, std::fabs(found[0][i]));
                off = std::max<double>(off, std::fabs(found[0][i] - found[1][i]));
            }
            worst = std::max(worst, off / most);
        }
    }
    std::printf("path %d, largest difference %.2g\n", polyphi_isa(), worst);
    return worst > 1e-5;
}
