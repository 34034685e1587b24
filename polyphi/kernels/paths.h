// Includes the file KERNEL once for each set of instructions, in a namespace of its name, after vectors.h and with
// LANES defined as the number of floats of a vector.

namespace scalar {
#define LANES 1
#include "vectors.h"
#include KERNEL
#undef LANES
}  // namespace scalar

#if POLYPHI_X86

POLYPHI_BEGIN(POLYPHI_AVX512)
namespace avx512 {
#define LANES 16
#include "vectors.h"
#include KERNEL
#undef LANES
}  // namespace avx512
POLYPHI_END

POLYPHI_BEGIN(POLYPHI_AVX2)
namespace avx2 {
#define LANES 8
#include "vectors.h"
#include KERNEL
#undef LANES
}  // namespace avx2
POLYPHI_END

#elif POLYPHI_NEON

namespace neon {
#define LANES 4
#include "vectors.h"
#include KERNEL
#undef LANES
}  // namespace neon

#endif

// The function of this name in the namespace of a value of `Isa`. (A name with template arguments may have commas.)
#if POLYPHI_X86
#define CHOSEN(isa, ...) \
    ((isa) == AVX512 ? avx512::__VA_ARGS__ : (isa) == SCALAR ? scalar::__VA_ARGS__ : avx2::__VA_ARGS__)
#elif POLYPHI_NEON
#define CHOSEN(isa, ...) ((isa) == SCALAR ? scalar::__VA_ARGS__ : neon::__VA_ARGS__)
#else
#define CHOSEN(isa, ...) ((void)(isa), scalar::__VA_ARGS__)
#endif
