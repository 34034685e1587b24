"""The instructions that kernels can be tried with here."""

from polyphi import kernels


def here() -> list[int]:
    """Places in `kernels.PATHS`, of those that this CPU has; the scalar one always."""
    return [i for i in range(len(kernels.PATHS)) if kernels.has(i)] or [0]
