"""The older CPUs that this one can be tested as: python -m tests.isa prints, one a line, the environment variables that
make libraries use no newer instructions. `make test-isa` runs tests in each of these environments.

oneDNN alone is limited to every set of instructions that it distinguishes and this CPU has, so that its choices of
kernels and layouts meet ours of a newer CPU; then all libraries together, as on a CPU with AVX2 and nothing newer
(avx2.env) and on one without AVX2, on which our kernels don't run.
"""

from tests.allowed_skips import cpu_has, emulation

AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
ONEDNN = {
    "SSE41": ("sse4_1",),
    "AVX2": ("avx2",),
    "AVX2_VNNI": ("avx_vnni",),
    "AVX512_CORE": AVX512,
    "AVX512_CORE_VNNI": (*AVX512, "avx512_vnni"),
    "AVX512_CORE_BF16": (*AVX512, "avx512_vnni", "avx512_bf16"),
    "AVX512_CORE_FP16": (*AVX512, "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    "AVX512_CORE_AMX": (*AVX512, "avx512_fp16", "amx_int8", "amx_bf16"),
}
"""Values of ONEDNN_MAX_CPU_ISA, and Linux's names of the instructions that they need."""
WITHOUT_AVX2 = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "POLYPHI_MAX_CPU_ISA": "SCALAR",
}


def environments() -> list[dict[str, str]]:
    """The environments that this CPU can be tested in, none on CPUs that aren't x86."""
    values = [name for name, needed in ONEDNN.items() if all(map(cpu_has, needed))]
    whole = [WITHOUT_AVX2, emulation()] if "AVX2" in values else []
    return [{"ONEDNN_MAX_CPU_ISA": value} for value in values] + whole


if __name__ == "__main__":
    for environment in environments():
        print(" ".join(f"{name}={value}" for name, value in environment.items()))
