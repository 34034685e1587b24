// Includes the file KERNEL once for each set of instructions, in a namespace of its name, after vectors.h and with
// LANES defined as the number of floats of a vector. With WITH_PAIRS it is included for AVX-512 BF16, too, where PAIRS
// is 1, elsewhere 0.

#ifdef WITH_PAIRS
#define PAIRS 0
#endif

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

#ifdef WITH_PAIRS
#undef PAIRS
#if POLYPHI_X86
POLYPHI_BEGIN(POLYPHI_AVX512 ",avx512bf16")
namespace avx512_bf16 {
#define LANES 16
#define PAIRS 1
#include "vectors.h"
#include KERNEL
#undef PAIRS
#undef LANES
}  // namespace avx512_bf16
POLYPHI_END
#endif
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
