"""The KV cache: keys and values of every layer, in blocks of tokens that sequences may share.

    pool = BlockPool(1000)                     # reference counts and hashes of the blocks
    memory = Memory(config, 1000)              # the tensors
    table = BlockTable(pool)                   # one sequence's blocks
    table.grow(40)
    model(batch, StepCache(memory, [table], [40]))   # writes 40 tokens, attends over all cached ones

A full block has a hash of everything that its keys and values depend on: the adapter's weights, the LongRoPE table,
the content of media and all tokens up to its end. A block that no sequence references keeps its hash until its memory
is needed, so that a later sequence with the same prefix can reuse it.

A sequence's blocks are contiguous where possible (a new sequence starts in the middle of the longest free range),
because attention reads each contiguous range without copying it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import polyphi.kernels as kernels
from polyphi.kernels import attention
from polyphi.kernels.attention import BlockLayout, KVLayer
from polyphi.model.config import DecoderConfig
from polyphi.prepared.attention import (
    Piece,
    continued_attention,
    cumulative_lengths,
    last_token_attention,
    varlen_attention,
    varlen_supported,
)

BLOCK = attention.BLOCK
"""Tokens of a block."""
SCALE = 4
"""Bytes of the scale of one token's keys or values in one head (int8)."""
TYPICAL_LENGTH = 2048
"""Tokens of a typical sequence: by default the cache has capacity for `max_num_seqs` of them, or one whole context."""


class OutOfBlocks(Exception):
    """More blocks were requested than are free or can be evicted."""


class BlockPool:
    """Reference counts of blocks: in use by sequences, cached for reuse, or free."""

    def __init__(self, blocks: int) -> None:
        self.size = blocks
        self._references = [0] * blocks
        self._free = np.ones(blocks, dtype=bool)
        self._free_count = blocks
        self._touched = np.zeros(blocks, dtype=bool)
        self._hashes: dict[int, bytes] = {}
        self._by_hash: dict[bytes, int] = {}
        # Cached blocks without references, the one released longest ago first.
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be allocated."""
        return self._free_count + len(self._evictable)

    @property
    def in_use(self) -> int:
        """Blocks that sequences reference."""
        return self.size - self.available

    @property
    def touched(self) -> int:
        """Blocks that were allocated at least once: on a CPU the memory of others isn't resident."""
        return int(self._touched.sum())

    @property
    def cached(self) -> int:
        """Blocks with a hash, in use or not."""
        return len(self._hashes)

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """`count` blocks, directly after block `after` if these are free. Raises `OutOfBlocks` and allocates none."""
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks are needed, {self.available} are available")
        while self._free_count < count:
            self._evict(next(iter(self._evictable)))
        blocks: list[int] = []
        start = None if after is None else after + 1
        while len(blocks) < count:
            if start is None or start >= self.size or not self._free[start]:
                start = self._free_start(count - len(blocks), new=after is None and not blocks)
            blocks.append(start)
            self._free[start], self._touched[start] = False, True
            self._references[start] = 1
            start += 1
        self._free_count -= count
        return blocks

    def _free_start(self, count: int, new: bool) -> int:
        """The first block to allocate: in the longest free range; for a new sequence in its middle, so that the
        sequence before it can grow."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], self._free.view(np.int8), [0]))))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = int(lengths.argmax())
        start, length = int(starts[longest]), int(lengths[longest])
        is_long = new and start > 0 and length >= 4 * count
        return start + length // 2 if is_long else start

    def acquire(self, key: bytes) -> int | None:
        """The block with the hash `key`, referenced for the caller; None if it isn't cached."""
        block = self._by_hash.get(key)
        if block is not None:
            self._references[block] += 1
            self._evictable.pop(block, None)
        return block

    def register(self, block: int, key: bytes) -> None:
        """Make a full block reusable under its hash `key`, unless another block is registered under it."""
        if key not in self._by_hash:
            self._hashes[block] = key
            self._by_hash[key] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Drop a sequence's references; `blocks` in order. The last blocks are evicted first: a prefix stays usable."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, f"block {block} was released twice"
            if self._references[block]:
                continue
            if block in self._hashes:
                self._evictable[block] = None
            else:
                self._free[block] = True
                self._free_count += 1

    def released_by(self, blocks: Sequence[int]) -> int:
        """The number of a sequence's blocks that no other one references: they are available after its `release`."""
        return sum(self._references[block] == 1 for block in blocks)

    def clear_cache(self) -> None:
        """Drop all hashes; blocks in use stay allocated."""
        for block in list(self._evictable):
            self._evict(block)
        self._hashes.clear()
        self._by_hash.clear()

    def _evict(self, block: int) -> None:
        del self._evictable[block]
        del self._by_hash[self._hashes.pop(block)]
        self._free[block] = True
        self._free_count += 1


def block_hash(before: bytes, ids: Sequence[int], media: Sequence[bytes]) -> bytes:
    """The hash of a block: its token ids and media keys, chained to `before`, the hash of the previous block."""
    hasher = hashlib.sha256(before)
    hasher.update(np.asarray(ids, dtype=np.int64).tobytes())
    for key in media:
        hasher.update(key)
    return hasher.digest()


class BlockTable:
    """The blocks of one sequence, in order, its cached tokens (`length`) and the number of `registered` blocks."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self.length = 0
        self.registered = 0

    def reuse_prefix(self, hashes: Sequence[bytes]) -> None:
        """Reference the longest cached prefix with these block hashes. The table must be empty."""
        assert not self.blocks
        for key in hashes:
            block = self.pool.acquire(key)
            if block is None:
                break
            self.blocks.append(block)
        self.registered, self.length = len(self.blocks), len(self.blocks) * BLOCK

    def missing_blocks(self, tokens: int) -> int:
        """Blocks to allocate before the table holds `tokens` tokens in all."""
        return max(0, -(-tokens // BLOCK) - len(self.blocks))

    def grow(self, tokens: int) -> None:
        """Allocate blocks for `tokens` tokens in all. Raises `OutOfBlocks` and changes nothing."""
        if count := self.missing_blocks(tokens):
            self.blocks += self.pool.allocate(count, self.blocks[-1] if self.blocks else None)

    def register(self, hashes: Sequence[bytes]) -> None:
        """Register the blocks that have become full; `hashes` of all full ones."""
        while self.registered < min(len(hashes), self.length // BLOCK):
            self.pool.register(self.blocks[self.registered], hashes[self.registered])
            self.registered += 1

    def clear(self) -> None:
        """Release all blocks."""
        self.pool.release(self.blocks)
        self.blocks, self.registered, self.length = [], 0, 0

    def rows(self, start: int, end: int) -> list[int]:
        """Memory rows of tokens `start` to `end`."""
        return [self.blocks[t // BLOCK] * BLOCK + t % BLOCK for t in range(start, end)]

    def row_ranges(self, end: int) -> list[tuple[int, int]]:
        """Memory rows of the first `end` tokens as contiguous ranges (first, end)."""
        ranges: list[list[int]] = []
        for block in self.blocks[: -(-end // BLOCK)]:
            if ranges and ranges[-1][1] == block * BLOCK:
                ranges[-1][1] += BLOCK
            else:
                ranges.append([block * BLOCK, (block + 1) * BLOCK])
        if ranges:
            ranges[-1][1] -= -end % BLOCK
        return [(first, last) for first, last in ranges]


FORMATS = ("int8",)
"""Formats of keys and values other than the model's own dtype."""


class Memory:
    """Keys and values, [blocks * BLOCK, K, d] for every layer. On a CPU a page takes memory only once it is written,
    and a head's tokens are contiguous, as attention reads them (4,000 tokens of 8 heads: 2.3 ms instead of 6.7).

    `kv` None stores them in `dtype`; "int8" with a scale per token and head, on a CPU only (ValueError elsewhere)."""

    def __init__(
        self,
        config: DecoderConfig,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        kv: str | None = None,
    ) -> None:
        check_format(kv, device)
        rows, heads, d = blocks * BLOCK, config.num_key_value_heads, config.head_dim

        def empty(dtype: torch.dtype, *width: int) -> Tensor:
            if device.type == "cpu":
                return torch.empty(heads, rows, *width, dtype=dtype).transpose(0, 1)
            return torch.empty(rows, heads, *width, dtype=dtype, device=device)

        def layer() -> KVLayer:
            if kv is None:
                return KVLayer(empty(dtype, d), empty(dtype, d))
            scales = (empty(torch.float32), empty(torch.float32))
            return KVLayer(empty(torch.int8, d), empty(torch.int8, d), *scales)

        self.layers = [layer() for _ in range(config.num_hidden_layers)]


def check_format(kv: str | None, device: torch.device) -> None:
    """Raises ValueError for an unknown format of keys and values, or one that this device doesn't support."""
    if kv not in (None, *FORMATS):
        raise ValueError(f"kv must be None (the model's dtype) or int8, found {kv!r}")
    if kv is not None and device.type != "cpu":
        raise ValueError(
            f"kv={kv} is supported on a CPU only, and this model is on {device}; leave kv out, or load the model "
            "with device='cpu'"
        )


def token_bytes(config: DecoderConfig, dtype: torch.dtype, kv: str | None = None) -> int:
    """Bytes of one token's keys and values in all layers."""
    row = config.head_dim * dtype.itemsize if kv is None else config.head_dim + SCALE
    return 2 * config.num_hidden_layers * config.num_key_value_heads * row


def default_blocks(config: DecoderConfig, token_bytes: int, free: int, max_num_seqs: int) -> int:
    """Blocks of the KV cache by default: for `max_num_seqs` typical sequences or one whole context, whichever is more,
    but at most half of the memory that is `free` beside the weights. `token_bytes`: keys and values of a token."""
    tokens = max(config.max_position_embeddings, max_num_seqs * TYPICAL_LENGTH)
    return min(tokens // BLOCK, free // 2 // (token_bytes * BLOCK))


@dataclass
class _Sequence:
    """One sequence of a step: its number of `new` tokens, and the memory rows of all tokens before them (for a single
    new token: of all tokens)."""

    new: int
    ranges: list[tuple[int, int]]


class StepCache:
    """The `model.attention.KVCache` of one forward: its sequences in the order of the `Batch`. `new` counts each
    sequence's new tokens, whose blocks must be allocated."""

    def __init__(self, memory: Memory, tables: Sequence[BlockTable], new: Sequence[int]) -> None:
        self._memory = memory
        keys = memory.layers[0].keys
        device = keys.device
        ends = [table.length + n for table, n in zip(tables, new, strict=True)]
        rows = [r for t, end in zip(tables, ends, strict=True) for r in t.rows(t.length, end)]
        self._rows = torch.tensor(rows, device=device)
        self._sequences = [
            _Sequence(n, table.row_ranges(end if n == 1 else table.length))
            for table, n, end in zip(tables, new, ends, strict=True)
        ]
        self._ends = ends
        self._layout: BlockLayout | None = None
        if device.type == "cpu" and kernels.missing() is None:
            starts = [0, *accumulate(new)]
            self._layout = BlockLayout(starts, ends, [table.blocks for table in tables])
        self._gathered: tuple[Tensor, Tensor, Tensor] | None = None
        if device.type == "cuda":
            every = [r for table, end in zip(tables, ends, strict=True) for r in table.rows(0, end)]
            self._gathered = (
                torch.tensor(every, device=device),
                cumulative_lengths(new, device),
                cumulative_lengths(ends, device),
            )

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        cu_seqlens: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        cached = self._memory.layers[layer]
        if self._layout is not None and attention.supports(q, k, v, cached):
            return attention.attend(q, k, v, cached, self._layout)
        k = self._write(k, cached.keys, cached.key_scales)
        v = self._write(v, cached.values, cached.value_scales)
        if self._gathered is not None and varlen_supported(q):
            every, queries, ends = self._gathered
            most = max(s.new for s in self._sequences)
            gathered = [x.index_select(0, every) for x in cached[:2]]
            return varlen_attention(
                q, gathered[0], gathered[1], queries, ends, most, max(self._ends)
            )
        outs = []
        lengths = [s.new for s in self._sequences]
        parts = zip(self._sequences, *(x.split(lengths) for x in (q, k, v)), strict=True)
        for sequence, query, key, value in parts:
            pieces = [_piece(cached, first, last, q.dtype) for first, last in sequence.ranges]
            if sequence.new == 1:
                outs.append(last_token_attention(query, pieces))
            else:
                outs.append(continued_attention(query, key, value, pieces))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _write(self, new: Tensor, rows: Tensor, scales: Tensor | None) -> Float[Tensor, "T K d"]:
        """Writes new keys or values and returns them as they are stored (rounded, in int8)."""
        if scales is None:
            rows.index_copy_(0, self._rows, new.to(rows.dtype))
            return new
        scale = (new.abs().amax(-1).float() / 127).clamp_(min=1e-12)
        whole = (new.float() / scale[..., None]).round_()
        rows.index_copy_(0, self._rows, whole.to(torch.int8))
        scales.index_copy_(0, self._rows, scale)
        return (whole * scale[..., None]).to(new.dtype)


def _piece(layer: KVLayer, first: int, last: int, dtype: torch.dtype) -> Piece:
    """Keys and values of memory rows `first` to `last`, dequantized to `dtype`."""
    keys, values = layer.keys[first:last], layer.values[first:last]
    if layer.key_scales is None or layer.value_scales is None:
        return keys, values
    scales = layer.key_scales[first:last, :, None], layer.value_scales[first:last, :, None]
    return (keys * scales[0]).to(dtype), (values * scales[1]).to(dtype)
