// What the encoders' kernels share: products as an int8 kernel leaves them, and memory that grows.
#pragma once

#include <memory>

#include "native.h"

namespace polyphi {

// Rows of a product in bfloat16, `stride` apart, of which value * scale[row] + bias is meant. A null `scale` means none is
// owed, a null `bias` neither.
struct Raw {
    const uint16_t* at;
    int64_t stride;
    const float *scale, *bias;
};

// Memory that grows, from the start of a cache line on: a vector across two lines takes two reads.
template <typename T>
class Room {
public:
    T* of(int64_t count) {
        constexpr int64_t line = 64 / sizeof(T);
        if (int64_t(held.size()) < count + line) held.resize(size_t(count + line));
        void* start = held.data();
        size_t space = held.size() * sizeof(T);
        return first = static_cast<T*>(std::align(64, size_t(count) * sizeof(T), start, space));
    }
    T* first = nullptr;

private:
    std::vector<T> held;
};

}  // namespace polyphi
