"""The KV cache: reference counts of blocks, reuse of prefixes, and that attention reads the right rows."""

import random

import pytest
import torch

from polyphi import kernels
from polyphi.engine.cache import (
    BLOCK,
    BlockPool,
    BlockTable,
    Memory,
    OutOfBlocks,
    StepCache,
    block_hash,
    check_format,
    token_bytes,
)
from polyphi.engine.engine import Engine
from polyphi.model.attention import KVCache, packed_attention
from polyphi.types.sampling import SamplingParams


def hashes(count: int, root: bytes = b"root") -> list[bytes]:
    result = [block_hash(root, range(BLOCK), [])]
    while len(result) < count:
        result.append(block_hash(result[-1], range(BLOCK), []))
    return result


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_never_lost_or_written_by_two_sequences(seed: int) -> None:
    """Random sequences that grow, share prefixes, are cached and end."""
    dice, pool = random.Random(seed), BlockPool(30)
    tables: list[tuple[BlockTable, list[bytes]]] = []
    refused = shared = 0
    for _ in range(400):
        action = dice.random()
        if action < 0.35:
            table, own = BlockTable(pool), hashes(12, bytes([dice.randrange(3)]))
            table.reuse_prefix(own[: dice.randrange(5)])
            shared += bool(table.blocks)
            tables.append((table, own))
        elif action < 0.75 and tables:
            table, own = dice.choice(tables)
            tokens = table.length + dice.randrange(1, 90)
            missing = table.missing_blocks(tokens)
            try:
                table.grow(tokens)
                table.length = tokens
                table.register(own[: table.length // BLOCK])
            except OutOfBlocks:
                refused += 1
                assert missing > pool.available
        elif tables:
            tables.pop(dice.randrange(len(tables)))[0].clear()
        in_use = {b for table, _ in tables for b in table.blocks}
        assert pool.in_use == len(in_use)
        assert pool.available == pool.size - len(in_use)
        own_blocks = [b for table, _ in tables for b in table.blocks[table.registered :]]
        assert len(own_blocks) == len(set(own_blocks)), "two sequences write into one block"
    assert refused and shared
    for table, _ in tables:
        table.clear()
    assert pool.in_use == 0 and pool.available == pool.size
    assert pool.cached
    pool.clear_cache()
    assert pool.cached == 0 and pool.available == pool.size


def test_a_prefix_is_reused_until_its_memory_is_needed() -> None:
    pool, own = BlockPool(4), hashes(3)
    first = BlockTable(pool)
    first.grow(3 * BLOCK + 1)
    first.length = 3 * BLOCK + 1
    first.register(own)
    first.clear()
    assert (pool.in_use, pool.cached) == (0, 3)
    again = BlockTable(pool)
    again.reuse_prefix(own)
    assert again.length == 3 * BLOCK and pool.in_use == 3
    again.clear()
    other = BlockTable(pool)
    other.reuse_prefix(hashes(3, b"another adapter"))
    assert other.blocks == [] and other.length == 0
    other.grow(2 * BLOCK)  # one block was free, the last one of the prefix is evicted
    assert pool.cached == 2
    again.reuse_prefix(own)
    assert again.length == 2 * BLOCK


def test_blocks_take_memory_when_they_are_first_used(engine: Engine) -> None:
    """Each different prompt takes new blocks until all were used; then the memory stays as it is."""
    each = BLOCK * token_bytes(engine.model.config.decoder, engine.model.decoder.dtype)
    engine = Engine(engine.model, engine.processor, memory=40 * each)
    assert engine.counters().cache_bytes == 0
    used, blocks = [], engine.pool.size
    for prompts in (2, blocks - 2, blocks):
        for number in range(prompts):
            ids = [3, *divmod(number + 7 * len(used), 100), *[4] * (BLOCK - 2)]
            engine.generate(ids, sampling=SamplingParams(temperature=0.0, max_tokens=1))
        used.append(engine.counters().cache_bytes)
    assert 0 < used[0] <= 2 * 2 * each and used[1] == used[2] == blocks * each


def test_a_hash_depends_on_root_ids_and_media() -> None:
    ids = list(range(BLOCK))
    keys = {
        block_hash(b"a", ids, []),
        block_hash(b"b", ids, []),
        block_hash(b"a", ids[::-1], []),
        block_hash(b"a", ids, [b"picture"]),
        block_hash(b"a", ids, [b"other"]),
    }
    assert len(keys) == 5


def test_sequences_that_grow_in_turn_stay_contiguous() -> None:
    pool = BlockPool(256)
    tables = [BlockTable(pool) for _ in range(4)]
    for tokens in range(1, 20 * BLOCK, BLOCK):
        for table in tables:
            table.grow(tokens)
    assert all(len(table.row_ranges(len(table.blocks) * BLOCK)) == 1 for table in tables)


def test_attention_reads_each_sequences_cached_tokens(tiny_config) -> None:
    """Chunks of sequences through scattered blocks, against every whole sequence alone."""
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
    tables = [BlockTable(pool) for _ in lengths]
    outs: list[list[torch.Tensor]] = [[] for _ in lengths]
    while any(t.length < n for t, n in zip(tables, lengths, strict=True)):
        some = [i for i, n in enumerate(lengths) if tables[i].length < n and dice.random() < 0.7]
        new = [min(dice.choice([1, 1, 5, 40]), lengths[i] - tables[i].length) for i in some]
        if not some:
            continue
        for i, n in zip(some, new, strict=True):
            tables[i].grow(tables[i].length + n)
        pool.allocate(1, after=tables[some[0]].blocks[-1])  # so that blocks are not contiguous
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
    assert any(len(t.row_ranges(t.length)) > 1 for t in tables)
    for three, parts in zip(whole, outs, strict=True):
        expected = packed_attention(*three, (0, len(three[0])))
        # float64: measured 5e-16 on outputs of spread 1.
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("kv", [None, "int8"])
def test_bytes_of_a_token(tiny_config, kv: str | None) -> None:
    config = tiny_config.decoder
    memory = Memory(config, 3, torch.float32, torch.device("cpu"), kv)
    size = sum(t.nbytes for layer in memory.layers for t in layer if t is not None)
    assert size == 3 * BLOCK * token_bytes(config, torch.float32, kv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv", [None, "int8"])
def test_attention_is_the_same_by_kernels_and_by_torch(
    tiny_config, kv: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config.decoder
    heads, d = config.num_attention_heads, config.head_dim
    results: list[list[torch.Tensor]] = []
    for missing in (kernels.missing(), "no compiler"):
        monkeypatch.setattr(kernels, "missing", lambda reason=missing: reason)
        draw = torch.Generator().manual_seed(0)
        pool = BlockPool(40)
        memory = Memory(config, 40, dtype, torch.device("cpu"), kv)
        tables, outs = [BlockTable(pool), BlockTable(pool)], []
        for new in ([70, 3], [1, 1], [5, 40], [1, 1]):
            for table, n in zip(tables, new, strict=True):
                table.grow(table.length + n)
            q, k, v = (torch.randn(sum(new), h, d, generator=draw).to(dtype) for h in (heads, 2, 2))
            with torch.inference_mode():
                outs.append(StepCache(memory, tables, new).attend(0, q, k, v, ()))
            for table, n in zip(tables, new, strict=True):
                table.length += n
        results.append(outs)
    # In int8 a value halfway between two steps may be rounded to either.
    most = 2e-2 if dtype == torch.bfloat16 else 1e-2 if kv else 1e-5
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=most, rtol=0)


def test_int8_is_for_a_cpu() -> None:
    with pytest.raises(ValueError, match="cuda"):
        check_format("int8", torch.device("cuda"))
    with pytest.raises(ValueError, match="int8, found 'int4'"):
        check_format("int4", torch.device("cpu"))
