"""The memory of keys and values: who holds which block, what is found again, and that attention reads the right
rows."""

import random

import pytest
import torch

from polyphi import kernels
from polyphi.engine.cache import (
    BLOCK,
    BlockPool,
    Memory,
    OutOfBlocks,
    StepCache,
    Table,
    chained,
    check_kind,
    token_bytes,
)
from polyphi.model.attention import KVCache, packed_attention


def names(count: int, root: bytes = b"root") -> list[bytes]:
    found = [chained(root, range(BLOCK), [])]
    while len(found) < count:
        found.append(chained(found[-1], range(BLOCK), []))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_never_lost_or_held_twice(seed: int) -> None:
    """Random sequences that grow, share beginnings, are remembered and end."""
    dice, pool = random.Random(seed), BlockPool(30)
    tables: list[tuple[Table, list[bytes]]] = []
    refused = shared = 0
    for _ in range(400):
        what = dice.random()
        if what < 0.35:
            table, own = Table(pool), names(12, bytes([dice.randrange(3)]))
            table.adopt(own[: dice.randrange(5)])
            shared += bool(table.blocks)
            tables.append((table, own))
        elif what < 0.75 and tables:
            table, own = dice.choice(tables)
            wanted = table.length + dice.randrange(1, 90)
            missing = table.missing(wanted)
            try:
                table.grow(wanted)
                table.length = wanted
                table.remember(own[: table.length // BLOCK])
            except OutOfBlocks:
                refused += 1
                assert missing > pool.available
        elif tables:
            tables.pop(dice.randrange(len(tables)))[0].clear()
        held = {b for table, _ in tables for b in table.blocks}
        assert pool.held == len(held)
        assert pool.available == pool.size - len(held)
        own_blocks = [b for table, _ in tables for b in table.blocks[table.named :]]
        assert len(own_blocks) == len(set(own_blocks)), "two sequences write into one block"
    assert refused and shared
    for table, _ in tables:
        table.clear()
    assert pool.held == 0 and pool.available == pool.size
    assert pool.remembered
    pool.forget()
    assert pool.remembered == 0 and pool.available == pool.size


def test_what_starts_alike_is_found_again_until_memory_is_needed() -> None:
    pool, own = BlockPool(4), names(3)
    first = Table(pool)
    first.grow(3 * BLOCK + 1)
    first.length = 3 * BLOCK + 1
    first.remember(own)
    first.clear()
    assert (pool.held, pool.remembered) == (0, 3)
    again = Table(pool)
    again.adopt(own)
    assert again.length == 3 * BLOCK and pool.held == 3
    again.clear()
    other = Table(pool)
    other.adopt(names(3, b"another adapter"))
    assert other.blocks == [] and other.length == 0
    other.grow(
        2 * BLOCK
    )  # one block was free, one is taken from what rests: the end of the sequence
    assert pool.remembered == 2
    again.adopt(own)
    assert again.length == 2 * BLOCK


def test_a_name_tells_everything_before_it_apart() -> None:
    ids = list(range(BLOCK))
    found = {
        chained(b"a", ids, []),
        chained(b"b", ids, []),
        chained(b"a", ids[::-1], []),
        chained(b"a", ids, [b"picture"]),
        chained(b"a", ids, [b"other"]),
    }
    assert len(found) == 5


def test_sequences_that_grow_in_turn_stay_in_one_stretch() -> None:
    pool = BlockPool(256)
    tables = [Table(pool) for _ in range(4)]
    for tokens in range(1, 20 * BLOCK, BLOCK):
        for table in tables:
            table.grow(tokens)
    assert all(len(table.stretches(table.room)) == 1 for table in tables)


def test_attention_reads_what_is_held_of_each_sequence(tiny_config) -> None:
    """Chunks of sequences through blocks that lie anywhere, against every sequence at once and alone."""
    config, dice = tiny_config.decoder, random.Random(0)
    pool = BlockPool(400)
    memory = Memory(config, 400, torch.float64, torch.device("cpu"))
    lengths = [150, 40, 97]
    heads, d = config.num_attention_heads, config.head_dim
    generator = torch.Generator().manual_seed(0)
    whole = [
        [torch.randn(n, h, d, generator=generator, dtype=torch.float64) for h in (heads, 2, 2)]
        for n in lengths
    ]
    tables = [Table(pool) for _ in lengths]
    outs: list[list[torch.Tensor]] = [[] for _ in lengths]
    while any(t.length < n for t, n in zip(tables, lengths, strict=True)):
        some = [i for i, n in enumerate(lengths) if tables[i].length < n and dice.random() < 0.7]
        new = [min(dice.choice([1, 1, 5, 40]), lengths[i] - tables[i].length) for i in some]
        if not some:
            continue
        for i, n in zip(some, new, strict=True):
            tables[i].grow(tables[i].length + n)
        pool.take(1, after=tables[some[0]].blocks[-1])  # somebody in the way
        cache = StepCache(memory, [tables[i] for i in some], new)
        assert isinstance(cache, KVCache)
        spans = [
            slice(tables[i].length, tables[i].length + n) for i, n in zip(some, new, strict=True)
        ]
        q, k, v = (
            torch.cat([whole[i][x][s] for i, s in zip(some, spans, strict=True)]) for x in range(3)
        )
        out = cache.attend(1, q, k, v, ())
        for i, n, part in zip(some, new, out.split(new), strict=True):
            tables[i].length += n
            outs[i].append(part)
    assert any(len(t.stretches(t.length)) > 1 for t in tables)
    for three, found in zip(whole, outs, strict=True):
        expected = packed_attention(*three, (0, len(three[0])))
        # float64: measured 5e-16 on outputs of spread 1.
        torch.testing.assert_close(torch.cat(found), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("kind", [None, "int8"])
def test_bytes_of_a_token(tiny_config, kind: str | None) -> None:
    config = tiny_config.decoder
    memory = Memory(config, 3, torch.float32, torch.device("cpu"), kind)
    held = sum(t.nbytes for layer in memory.layers for t in layer if t is not None)
    assert held == 3 * BLOCK * token_bytes(config, torch.float32, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [None, "int8"])
def test_attention_is_the_same_by_kernels_and_by_torch(
    tiny_config, kind: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config.decoder
    heads, d = config.num_attention_heads, config.head_dim
    found: list[list[torch.Tensor]] = []
    for missing in (kernels.missing(), "no compiler"):
        monkeypatch.setattr(kernels, "missing", lambda said=missing: said)
        draw = torch.Generator().manual_seed(0)
        pool = BlockPool(40)
        memory = Memory(config, 40, dtype, torch.device("cpu"), kind)
        tables, outs = [Table(pool), Table(pool)], []
        for new in ([70, 3], [1, 1], [5, 40], [1, 1]):
            for table, n in zip(tables, new, strict=True):
                table.grow(table.length + n)
            q, k, v = (torch.randn(sum(new), h, d, generator=draw).to(dtype) for h in (heads, 2, 2))
            with torch.inference_mode():
                outs.append(StepCache(memory, tables, new).attend(0, q, k, v, ()))
            for table, n in zip(tables, new, strict=True):
                table.length += n
        found.append(outs)
    # In int8 a number that lies between two steps may be rounded to either.
    most = 2e-2 if dtype == torch.bfloat16 else 1e-2 if kind else 1e-5
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=most, rtol=0)


def test_eight_bits_are_for_a_cpu() -> None:
    with pytest.raises(ValueError, match="for a CPU, and this model is on cuda"):
        check_kind("int8", torch.device("cuda"))
    with pytest.raises(ValueError, match=r"None .* or int8, found 'int4'"):
        check_kind("int4", torch.device("cpu"))
