"""Names of prefixes in the cache: a prefix is reusable only with the same weights, adapter, RoPE table and salt."""

import hashlib

import torch

from polyphi.engine.request import Request
from polyphi.model.multimodal import PhiModel


class Prefixes:
    """Root hashes of cached prefixes for a model's current weights."""

    def __init__(self, model: PhiModel) -> None:
        self.model = model
        self._roots: dict[tuple[str | None, str], bytes] = {}
        self._weights: tuple[int, ...] = ()

    def root(self, request: Request) -> bytes:
        """The hash that a sequence's prefixes begin with: the weights of its adapter and its LongRoPE table."""
        key = (request.adapter, request.ropes[-1])
        if key not in self._roots:
            hasher = hashlib.sha256(key[1].encode())
            if request.adapter is not None:
                for tensor in self.model.adapter_tensors(request.adapter):
                    hasher.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            self._roots[key] = hasher.digest()
        root = self._roots[key]
        return hashlib.sha256(request.caller.salt + root).digest() if request.caller.salt else root

    def weights_changed(self) -> bool:
        """Whether the model's weights changed since the last call: it may be trained between two requests."""
        versions = tuple(
            number
            for p in self.model.parameters()
            for number in (p.data_ptr(), 0 if p.is_inference() else p._version)
        )
        changed, self._weights = versions != self._weights, versions
        if changed:
            self._roots.clear()
        return changed
