// What the encoders' kernels share: products as an int8 kernel leaves them.
#pragma once

#include "native.h"

namespace polyphi {

// Rows of a product in bfloat16, `stride` apart, of which value * scale[row] + bias is meant. A null `scale` means none is
// owed, a null `bias` neither.
struct Raw {
    const uint16_t* at;
    int64_t stride;
    const float *scale, *bias;
};

}  // namespace polyphi
