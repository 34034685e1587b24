"""The instruction sets that this machine can test."""

from polyphi import kernels


def here() -> list[int]:
    """Indices in `kernels.PATHS` that this CPU supports; at least the scalar one."""
    return [i for i in range(len(kernels.PATHS)) if kernels.has(i)] or [0]
