"""Second moments of the inputs of the decoder's base linears over calibration rows, layer by layer.

    calibrate(model, rows, put)      # put(linear, hessian) for each linear, first layer first

`put` may quantize a layer's linears before its rows run through the next layer, whose Hessians then include the error
of the quantized layers. Rows have their adapters and media, so that a linear gets the inputs of inference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polyphi.model.lora import LoraLinear
from polyphi.model.multimodal import PhiModel
from polyphi.types.batch import Batch


@torch.no_grad()
def calibrate(
    model: PhiModel, rows: Sequence[Batch], put: Callable[[LoraLinear, Tensor], None]
) -> None:
    """Call `put` with each of the decoder's linears and the sum of x x' over its inputs x in float32. Memory beside
    the model: the rows' hidden states and one layer's sums."""
    decoder, states, contexts = model.decoder, [], []
    for batch in rows:
        row = batch.to(decoder.device)
        x = model.embed(row)
        states.append(x)
        contexts.append(decoder.context(x, row))
    for number, layer in enumerate(decoder.layers):
        sums = {m: _Sum(m) for m in layer.modules() if isinstance(m, LoraLinear)}
        for x, context in zip(states, contexts, strict=True):
            layer(x, context, number)
        for linear, own in sums.items():
            put(linear, own.pop())
        for i, context in enumerate(contexts):
            states[i] = layer(states[i], context, number)


class _Sum:
    """The sum of x x' over a linear's inputs, collected by a hook until `pop`."""

    def __init__(self, linear: LoraLinear) -> None:
        inputs = linear.weight.shape[1]
        self.total = torch.zeros(inputs, inputs, device=linear.weight.device)
        self._hook = linear.register_forward_pre_hook(self._add)

    def _add(self, linear: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].float()
        self.total.addmm_(x.t(), x)

    def pop(self) -> Tensor:
        """Remove the hook and return the sum."""
        self._hook.remove()
        total, self.total = self.total, torch.empty(0)
        return total
