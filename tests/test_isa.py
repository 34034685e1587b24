"""The older CPUs that a CPU is tested as."""

import pytest

from tests import isa

AVX2 = {"sse4_1", "avx2"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (set(), []),  # another architecture
        ({"sse4_1"}, ["SSE41"]),
        (AVX2 | {"avx_vnni"}, ["SSE41", "AVX2", "AVX2_VNNI", "SSE41", "AVX2"]),
        (AVX512, ["SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "SSE41", "AVX2"]),
        (AVX512 - {"avx512dq"}, ["SSE41", "AVX2", "SSE41", "AVX2"]),
    ],
)
def test_a_cpu_is_tested_as_every_older_one(
    flags: set[str], values: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last two limit all libraries."""
    monkeypatch.setattr(isa, "cpu_has", lambda *names: bool(flags & set(names)))
    environments = isa.environments()
    assert [environment["ONEDNN_MAX_CPU_ISA"] for environment in environments] == values
    assert [len(environment) for environment in environments[-2:]] == [4, 4] or len(values) < 4
