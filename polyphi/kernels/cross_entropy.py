"""The cross-entropy of logits and its gradient in place (cross_entropy.cpp)."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyphi.kernels.native import count, fits, function, number, plain, pointer, pool


@cache
def _function() -> Callable[..., None]:
    return function(
        "polyphi_cross_entropy",
        number,
        number,
        *[pointer] * 3,
        count,
        count,
        number,
        pointer,
        number,
    )


def supports(logits: Float[Tensor, "Q V"]) -> bool:
    """Whether `cross_entropy_` takes these logits."""
    return fits(logits) and logits.is_contiguous()


def cross_entropy_(
    logits: Float[Tensor, "Q V"],
    labels: Int[Tensor, " Q"],
    *,
    gradient: bool,
    isa: int = -1,
) -> Float[Tensor, " Q"]:
    """The cross-entropy of each row in float32. With `gradient` the logits become the gradient of their sum, rounded
    once. `isa` is for tests: an index in `PATHS`."""
    assert plain(logits) and logits.is_contiguous(), logits.dtype
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise IndexError(
            f"labels must be 0 to {logits.shape[1] - 1}, found {int(labels.min())} to {int(labels.max())}"
        )
    labels, losses = labels.contiguous(), logits.new_empty(len(logits), dtype=torch.float32)
    addresses = (t.data_ptr() for t in (logits, labels, losses))
    bf16 = int(logits.dtype == torch.bfloat16)
    sizes = (*logits.shape, int(gradient))
    _function()(isa, bf16, *addresses, *sizes, pool(), torch.get_num_threads())
    return losses
