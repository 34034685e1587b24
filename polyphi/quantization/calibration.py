"""What linears see: inputs of the decoder's base linears over calibration rows, a layer at a time.

    head = calibrate(model, rows, put)      # put(linear, hessian) for each linear, first layer first

A layer's linears are put, rounded say, before its rows go on to the next layer: which then sees, and can make good,
what rounding has done so far. Rows carry their adapters and media: a linear sees what it will see when it answers.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.batch import Batch
from polyphi.model.attention import working_dtype
from polyphi.model.decoder import Shared
from polyphi.model.lora import LoraLinear, routes
from polyphi.model.multimodal import PhiModel


@torch.no_grad()
def calibrate(
    model: PhiModel, rows: Sequence[Batch], put: Callable[[LoraLinear, Tensor], None]
) -> Float[Tensor, "D D"]:
    """Each of the decoder's linears to `put`, with the sum of x x' over its inputs x in float32; returns that of the
    head's inputs. Beside the model it takes the rows' hidden states and one layer's sums."""
    decoder, states, shared = model.decoder, [], []
    for given in rows:
        row = given.to(decoder.device)
        x = model.embed(row)
        turned = decoder.rope(row, working_dtype(x))
        states.append(x)
        shared.append(
            Shared(*turned, routes(row, decoder.adapters.keys(), x.device), row.bounds, None)
        )
    for number, layer in enumerate(decoder.layers):
        seen = {m: _Sum(m) for m in layer.modules() if isinstance(m, LoraLinear)}
        for x, beside in zip(states, shared, strict=True):
            layer(x, beside, number)
        for linear, found in seen.items():
            put(linear, found.taken())
        for i, beside in enumerate(shared):
            states[i] = layer(states[i], beside, number)
    hidden = torch.cat([decoder.norm(x).float() for x in states])
    return hidden.t() @ hidden


class _Sum:
    """The sum of x x' over all that a linear is given, until it is taken."""

    def __init__(self, linear: LoraLinear) -> None:
        inputs = linear.weight.shape[1]
        self.total = torch.zeros(inputs, inputs, device=linear.weight.device)
        self._hook = linear.register_forward_pre_hook(self._add)

    def _add(self, linear: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].float()
        self.total.addmm_(x.t(), x)

    def taken(self) -> Tensor:
        self._hook.remove()
        total, self.total = self.total, torch.empty(0)
        return total
