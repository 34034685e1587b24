// Shared by the encoders' kernels: outputs of an int8 kernel.
#pragma once

#include "native.h"

namespace polyphi {

// Rows of a product in bfloat16, `stride` apart, whose values are value * scale[row] + bias. A null `scale` or `bias`
// means that there is none to apply.
struct Raw {
    const uint16_t* at;
    int64_t stride;
    const float *scale, *bias;
};

}  // namespace polyphi
