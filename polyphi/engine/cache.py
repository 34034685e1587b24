"""What attention remembers: keys and values of every layer, in blocks of tokens that sequences may share.

    pool = BlockPool(1000)                     # who holds which block, and what the others still remember
    memory = Memory(config, 1000)              # the tensors
    table = Table(pool)                        # one sequence's blocks
    table.grow(40)
    model(batch, StepCache(memory, [table], [40]))   # writes 40 tokens, attends over all that is held

A full block has a *name*, a hash of everything that its keys and values follow from: the adapter's weights, the
LongRoPE table, the content of media and all tokens up to its end. Blocks that nobody holds any more keep their name
until their memory is needed, so that a later sequence that starts alike finds them.

A sequence's blocks lie side by side where they can (a newcomer starts in the middle of the longest free stretch),
because attention reads each stretch where it lies.
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

from polyphi import kernels
from polyphi.kernels import attention
from polyphi.kernels.attention import Held, Where
from polyphi.model.attention import (
    Piece,
    continued_attention,
    cu_seqlens,
    last_token_attention,
    varlen_attention,
    varlen_supported,
)
from polyphi.model.config import DecoderConfig

BLOCK = attention.BLOCK
"""Tokens of a block."""
SCALE = 4
"""Bytes of the scale that a token's keys or values of a head have in int8."""


class OutOfBlocks(Exception):
    """More blocks were asked for than are free or merely remembered."""


class BlockPool:
    """Which blocks are held, by how many sequences, which are only remembered and which are free."""

    def __init__(self, blocks: int) -> None:
        self.size = blocks
        self._holders = [0] * blocks
        self._free = np.ones(blocks, dtype=bool)
        self._free_count = blocks
        self._names: dict[int, bytes] = {}
        self._by_name: dict[bytes, int] = {}
        # Remembered blocks that nobody holds, the one that rests longest first.
        self._resting: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return self._free_count + len(self._resting)

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.size - self.available

    @property
    def remembered(self) -> int:
        """Blocks with a name, held or not."""
        return len(self._names)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """`count` blocks, right behind block `after` where these are free. Raises `OutOfBlocks` and takes none."""
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks are needed, {self.available} are left")
        while self._free_count < count:
            self._forget(next(iter(self._resting)))
        taken: list[int] = []
        start = None if after is None else after + 1
        while len(taken) < count:
            if start is None or start >= self.size or not self._free[start]:
                start = self._stretch(count - len(taken), new=after is None and not taken)
            taken.append(start)
            self._free[start] = False
            self._holders[start] = 1
            start += 1
        self._free_count -= count
        return taken

    def _stretch(self, wanted: int, new: bool) -> int:
        """Where to go on: in the longest free stretch, for a new sequence with room before it for whoever grows
        there."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], self._free.view(np.int8), [0]))))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = int(lengths.argmax())
        start, length = int(starts[longest]), int(lengths[longest])
        roomy = new and start > 0 and length >= 4 * wanted
        return start + length // 2 if roomy else start

    def find(self, name: bytes) -> int | None:
        """The block of that name, held for the caller from now on."""
        block = self._by_name.get(name)
        if block is not None:
            self._holders[block] += 1
            self._resting.pop(block, None)
        return block

    def name(self, block: int, name: bytes) -> None:
        """Let others find a block that is full. Where another has the name already, this one stays nameless."""
        if name not in self._by_name:
            self._names[block] = name
            self._by_name[name] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Of a sequence, in order. Its end is forgotten first when memory is short: what stays can still be found."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} was released twice"
            if self._holders[block]:
                continue
            if block in self._names:
                self._resting[block] = None
            else:
                self._free[block] = True
                self._free_count += 1

    def forget(self) -> None:
        """All names; who holds a block keeps it."""
        for block in list(self._resting):
            self._forget(block)
        self._names.clear()
        self._by_name.clear()

    def _forget(self, block: int) -> None:
        del self._resting[block]
        del self._by_name[self._names.pop(block)]
        self._free[block] = True
        self._free_count += 1


def chained(before: bytes, ids: Sequence[int], media: Sequence[bytes]) -> bytes:
    """The name of a block: its own ids and media, after the name of the block before it."""
    found = hashlib.sha256(before)
    found.update(np.asarray(ids, dtype=np.int64).tobytes())
    for key in media:
        found.update(key)
    return found.digest()


class Table:
    """The blocks of one sequence, in order, the `length` of it that they hold, and how many of them are `named`."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self.length = 0
        self.named = 0

    @property
    def room(self) -> int:
        """Tokens that its blocks can hold."""
        return len(self.blocks) * BLOCK

    def adopt(self, names: Sequence[bytes]) -> None:
        """Hold the longest run of remembered blocks that begins with the first name. Only while it is empty."""
        assert not self.blocks
        for name in names:
            block = self.pool.find(name)
            if block is None:
                break
            self.blocks.append(block)
        self.named, self.length = len(self.blocks), self.room

    def missing(self, tokens: int) -> int:
        """Blocks still to be taken for so many tokens in all."""
        return max(0, -(-tokens // BLOCK) - len(self.blocks))

    def grow(self, tokens: int) -> None:
        """Room for so many tokens in all. Raises `OutOfBlocks` and changes nothing."""
        if count := self.missing(tokens):
            self.blocks += self.pool.take(count, self.blocks[-1] if self.blocks else None)

    def remember(self, names: Sequence[bytes]) -> None:
        """Name the blocks that have become full since; `names` of all full ones."""
        while self.named < min(len(names), self.length // BLOCK):
            self.pool.name(self.blocks[self.named], names[self.named])
            self.named += 1

    def clear(self) -> None:
        """Let go of everything."""
        self.pool.release(self.blocks)
        self.blocks, self.named, self.length = [], 0, 0

    def rows(self, start: int, end: int) -> list[int]:
        """Where tokens `start` to `end` stand in memory."""
        return [self.blocks[t // BLOCK] * BLOCK + t % BLOCK for t in range(start, end)]

    def stretches(self, end: int) -> list[tuple[int, int]]:
        """Memory rows (from, to) of the first `end` tokens, neighbours joined."""
        found: list[list[int]] = []
        for block in self.blocks[: -(-end // BLOCK)]:
            if found and found[-1][1] == block * BLOCK:
                found[-1][1] += BLOCK
            else:
                found.append([block * BLOCK, (block + 1) * BLOCK])
        if found:
            found[-1][1] -= -end % BLOCK
        return [(first, last) for first, last in found]


KINDS = ("int8",)
"""What keys and values can be kept in, other than the model's own type."""


class Memory:
    """Keys and values, [blocks * BLOCK, K, d] for every layer. A CPU gives a page of it only when it is first written;
    there a head's tokens lie side by side, as it reads them (4,000 tokens of 8 heads: 2.3 ms instead of 6.7).

    `kind` None keeps them in `dtype`; "int8" with a scale per token and head, on a CPU only (ValueError elsewhere)."""

    def __init__(
        self,
        config: DecoderConfig,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        kind: str | None = None,
    ) -> None:
        check_kind(kind, device)
        rows, heads, d = blocks * BLOCK, config.num_key_value_heads, config.head_dim

        def empty(dtype: torch.dtype, *width: int) -> Tensor:
            if device.type == "cpu":
                return torch.empty(heads, rows, *width, dtype=dtype).transpose(0, 1)
            return torch.empty(rows, heads, *width, dtype=dtype, device=device)

        def layer() -> Held:
            if kind is None:
                return Held(empty(dtype, d), empty(dtype, d))
            scales = (empty(torch.float32), empty(torch.float32))
            return Held(empty(torch.int8, d), empty(torch.int8, d), *scales)

        self.layers = [layer() for _ in range(config.num_hidden_layers)]


def check_kind(kind: str | None, device: torch.device) -> None:
    """Raises ValueError for a kind of keys and values that isn't there, or not on this device."""
    if kind not in (None, *KINDS):
        raise ValueError(f"kv must be None (the model's type) or int8, found {kind!r}")
    if kind is not None and device.type != "cpu":
        raise ValueError(
            f"keys and values in {kind} are for a CPU, and this model is on {device}; leave kv out, or load the model "
            "with device='cpu'"
        )


def token_bytes(config: DecoderConfig, dtype: torch.dtype, kind: str | None = None) -> int:
    """Bytes that a token's keys and values take, all layers together."""
    row = config.head_dim * dtype.itemsize if kind is None else config.head_dim + SCALE
    return 2 * config.num_hidden_layers * config.num_key_value_heads * row


@dataclass
class _Sequence:
    """What a step needs of one sequence: `new` tokens, and where all before them (or, for one token, all of them)
    lie."""

    new: int
    stretches: list[tuple[int, int]]


class StepCache:
    """The caches of the sequences of one forward, in the order of its `Batch`, as `model.attention.KVCache`. `new`
    counts each sequence's new tokens; their room was made before."""

    def __init__(self, memory: Memory, tables: Sequence[Table], new: Sequence[int]) -> None:
        self._memory = memory
        keys = memory.layers[0].keys
        device = keys.device
        ends = [table.length + n for table, n in zip(tables, new, strict=True)]
        rows = [r for t, end in zip(tables, ends, strict=True) for r in t.rows(t.length, end)]
        self._rows = torch.tensor(rows, device=device)
        self._sequences = [
            _Sequence(n, table.stretches(end if n == 1 else table.length))
            for table, n, end in zip(tables, new, ends, strict=True)
        ]
        self._ends = ends
        self._where: Where | None = None
        if device.type == "cpu" and kernels.missing() is None:
            starts = [0, *accumulate(new)]
            self._where = Where(starts, ends, [table.blocks for table in tables])
        self._gathered: tuple[Tensor, Tensor, Tensor] | None = None
        if device.type == "cuda":
            every = [r for table, end in zip(tables, ends, strict=True) for r in table.rows(0, end)]
            self._gathered = (
                torch.tensor(every, device=device),
                cu_seqlens(new, device),
                cu_seqlens(ends, device),
            )

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H d"],
        k: Float[Tensor, "T K d"],
        v: Float[Tensor, "T K d"],
        bounds: Sequence[int],
    ) -> Float[Tensor, "T H d"]:
        held = self._memory.layers[layer]
        if self._where is not None and attention.takes(q, k, v, held):
            return attention.attend(q, k, v, held, self._where)
        k = self._kept(k, held.keys, held.key_scales)
        v = self._kept(v, held.values, held.value_scales)
        if self._gathered is not None and varlen_supported(q):
            every, queries, ends = self._gathered
            most = max(s.new for s in self._sequences)
            gathered = [x.index_select(0, every) for x in held[:2]]
            return varlen_attention(
                q, gathered[0], gathered[1], queries, ends, most, max(self._ends)
            )
        outs = []
        lengths = [s.new for s in self._sequences]
        parts = zip(self._sequences, *(x.split(lengths) for x in (q, k, v)), strict=True)
        for sequence, query, key, value in parts:
            pieces = [_piece(held, first, last, q.dtype) for first, last in sequence.stretches]
            if sequence.new == 1:
                outs.append(last_token_attention(query, pieces))
            else:
                outs.append(continued_attention(query, key, value, pieces))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _kept(self, new: Tensor, rows: Tensor, scales: Tensor | None) -> Float[Tensor, "T K d"]:
        """Writes new keys or values, and gives them as they are remembered."""
        if scales is None:
            rows.index_copy_(0, self._rows, new.to(rows.dtype))
            return new
        scale = (new.abs().amax(-1).float() / 127).clamp_(min=1e-12)
        whole = (new.float() / scale[..., None]).round_()
        rows.index_copy_(0, self._rows, whole.to(torch.int8))
        scales.index_copy_(0, self._rows, scale)
        return (whole * scale[..., None]).to(new.dtype)


def _piece(held: Held, first: int, last: int, dtype: torch.dtype) -> Piece:
    """Keys and values of neighbours, as numbers."""
    keys, values = held.keys[first:last], held.values[first:last]
    if held.key_scales is None or held.value_scales is None:
        return keys, values
    scales = held.key_scales[first:last, :, None], held.value_scales[first:last, :, None]
    return (keys * scales[0]).to(dtype), (values * scales[1]).to(dtype)
