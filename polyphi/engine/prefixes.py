"""Names of prefixes in the cache: a prefix is reusable only with the same weights, adapter, RoPE table and salt."""

import hashlib
from collections.abc import Iterable

import torch

from polyphi.engine.request import Request
from polyphi.model.adapters import adapter_pairs
from polyphi.model.lora import LowRank
from polyphi.model.multimodal import PhiModel


class Prefixes:
    """Root hashes of cached prefixes for a model's current weights."""

    def __init__(self, model: PhiModel) -> None:
        self.model = model
        self._roots: dict[tuple[str | None, str], bytes] = {}
        self._digests: dict[str, bytes] = {}
        self._weights: tuple[int, ...] = ()

    def root(self, request: Request) -> bytes:
        """The hash that a sequence's prefixes begin with: the weights of its adapter and its LongRoPE table."""
        key = (request.adapter, request.ropes[-1])
        if key not in self._roots:
            hasher = hashlib.sha256(key[1].encode())
            if request.adapter is not None:
                hasher.update(self._digest(request.adapter))
            self._roots[key] = hasher.digest()
        root = self._roots[key]
        return hashlib.sha256(request.caller.salt + root).digest() if request.caller.salt else root

    def reuse(self, request: Request) -> None:
        """Let a request without blocks reference the longest cached prefix of its tokens that it may reuse."""
        request.table.reuse_prefix(request.reusable_hashes(self.root(request)))

    def _digest(self, adapter: str) -> bytes:
        if adapter not in self._digests:
            self._digests[adapter] = digest(adapter_pairs(self.model, adapter))
        return self._digests[adapter]

    def weights_changed(self) -> bool:
        """Whether the model's weights changed since the last call: it may be trained between two requests."""
        versions = self._versions()
        changed, self._weights = versions != self._weights, versions
        if changed:
            self._roots.clear()
            self._digests.clear()
        return changed

    def adapter_added(self, adapter: str, adapter_digest: bytes) -> None:
        """Accept a new adapter, with its `digest`, without taking it for a change of the other weights."""
        self._digests[adapter] = adapter_digest
        self._weights = self._versions()

    def adapter_removed(self, adapter: str) -> None:
        """Accept that an adapter was removed."""
        self._digests.pop(adapter, None)
        self._roots = {key: root for key, root in self._roots.items() if key[0] != adapter}
        self._weights = self._versions()

    def _versions(self) -> tuple[int, ...]:
        return tuple(
            number
            for p in self.model.parameters()
            for number in (p.data_ptr(), 0 if p.is_inference() else p._version)
        )


def digest(pairs: Iterable[tuple[str, LowRank]]) -> bytes:
    """The hash of an adapter: its tensors and their linears, and the factors of their products."""
    hasher = hashlib.sha256()
    for path, pair in pairs:
        hasher.update(f"{path} {pair.scale!r}".encode())
        for tensor in pair.tensors():
            hasher.update(str(tuple(tensor.shape)).encode())
            hasher.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return hasher.digest()
