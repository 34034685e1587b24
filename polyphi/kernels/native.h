// Shared by all kernels: the instructions of this CPU, bfloat16, and the execution of work in torch's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#define POLYPHI_X86 1
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#define POLYPHI_NEON 1
#endif

// Functions between these two may use instructions that not every CPU has; `best` returns the path to call.
#if defined(__clang__)
#define POLYPHI_DOTPROD "dotprod"
#define POLYPHI_I8MM "dotprod,i8mm"
#else
#define POLYPHI_DOTPROD "+dotprod"
#define POLYPHI_I8MM "+dotprod+i8mm"
#endif
#define POLYPHI_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define POLYPHI_BEGIN(features) \
    POLYPHI_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define POLYPHI_END POLYPHI_PRAGMA(clang attribute pop)
#else
#define POLYPHI_BEGIN(features) POLYPHI_PRAGMA(GCC push_options) POLYPHI_PRAGMA(GCC target(features))
#define POLYPHI_END POLYPHI_PRAGMA(GCC pop_options)
#endif
#define INLINE inline __attribute__((always_inline))
// Sums in an array stay in registers only if every loop over it is unrolled, for which GCC needs this pragma.
#define UNROLLED POLYPHI_PRAGMA(GCC unroll 32)
#define POLYPHI_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma"
#define POLYPHI_AMX POLYPHI_AVX512 ",amx-tile,amx-int8"
#define POLYPHI_AVXVNNI "avxvnni,avx2,fma"
#define POLYPHI_AVX2 "avx2,fma"

namespace polyphi {

enum Isa { SCALAR, AVX2, AVXVNNI, AVX512, NEON, I8MM };

// The highest path that may run, and whether products of bfloat16 and AMX may: lowered to test as another CPU.
struct Limit {
    int isa = I8MM;
    bool bf16 = true, amx = true;
};
inline Limit limit;

// Whether this CPU has the instructions of a path, and it may run.
inline bool has(int isa) {
    if (isa > limit.isa) return false;
#if POLYPHI_X86
    __builtin_cpu_init();
    const bool fused = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    uint32_t a, b, c, d;
    switch (isa) {
        case AVX512:
            return fused && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vnni");
        case AVXVNNI: return fused && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 4);
        case AVX2: return fused;
    }
#elif POLYPHI_NEON
#if defined(__linux__)
    if (isa == NEON) return getauxval(AT_HWCAP) & 1 << 20;  // ASIMDDP
    if (isa == I8MM) return has(NEON) && (getauxval(AT_HWCAP2) & 1 << 13);
#elif defined(__APPLE__)
    static const bool i8mm = [] {
        int value = 0;
        size_t size = sizeof value;
        return !sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &size, nullptr, 0) && value;
    }();
    if (isa == NEON) return true;
    if (isa == I8MM) return i8mm;
#else
    if (isa == NEON) return true;
#endif
#endif
    return isa == SCALAR;
}

inline int best() {
    for (const int isa : {AVX512, AVXVNNI, AVX2, I8MM, NEON})
        if (has(isa)) return isa;
    return SCALAR;
}

// Whether this CPU has AVX-512's products of bfloat16, and they may run.
inline bool has_bf16() {
#if POLYPHI_X86
    return limit.bf16 && has(AVX512) && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

// Whether this CPU has AMX's products of bytes, the system lets this process use them, and they may run.
inline bool has_amx() {
#if POLYPHI_X86 && defined(__linux__)
    static const bool permitted = [] {
        uint32_t a, b, c, d;
        constexpr uint32_t tiles = 1u << 24 | 1u << 25;  // AMX-TILE, AMX-INT8
        constexpr long request = 0x1023, data = 18;      // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tiles) == tiles &&
               syscall(SYS_arch_prctl, request, data) == 0;
    }();
    return limit.amx && has(AVX512) && permitted;
#else
    return false;
#endif
}

inline float from_bf16(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 64 : rounded);  // NaN stays NaN
}

// The number of pieces of size `to` that cover `count`.
inline int64_t up(int64_t count, int64_t to) { return (count + to - 1) / to; }

// Growing memory, aligned to cache lines: a vector across two lines takes two reads.
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

// The type of GOMP_parallel of GNU's OpenMP: runs a function in a number of threads, including this one, and waits.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Calls work(begin, end) for pieces of 0..count, `chunk` at a time, with dynamic scheduling; by `parallel` (null: in
// new threads).
template <typename Work>
void spread(const Work& work, int64_t count, int64_t chunk, Parallel parallel, int threads) {
    struct Job {
        const Work& work;
        int64_t count, chunk;
        std::atomic<int64_t> next{0};
    } job{work, count, chunk};
    const auto run = [](void* data) {
        auto& job = *static_cast<Job*>(data);
        for (;;) {
            const int64_t begin = job.next.fetch_add(job.chunk);
            if (begin >= job.count) return;
            job.work(begin, std::min(job.count, begin + job.chunk));
        }
    };
    if (threads <= 1 || count <= chunk) {
        run(&job);
    } else if (parallel) {
        parallel(run, &job, unsigned(threads), 0);
    } else {
        std::vector<std::thread> others;
        for (int i = 1; i < threads; i++) others.emplace_back(run, &job);
        run(&job);
        for (auto& thread : others) thread.join();
    }
}

}  // namespace polyphi
