"""The instructions that kernels can be tried with here."""

from polyphi import kernels


def here() -> list[int]:
    """Places in `kernels.PATHS`: of x86's all up to the best that this CPU has, and the scalar one always."""
    if kernels.path() not in kernels.PATHS:
        return [0]
    best = kernels.PATHS.index(kernels.path())
    return [0, best] if kernels.path() == "NEON" else list(range(best + 1))
