"""Clients take turns, and cancelled work, waiting or just admitted, leaks no slot."""

import asyncio
import random

import pytest

from polyphi.serve.turns import Turns


def test_clients_are_let_in_by_turns() -> None:
    order: list[str] = []

    async def work(turns: Turns, client: bytes, name: str) -> None:
        async with turns.turn(client):
            await asyncio.sleep(0)
            order.append(name)

    async def all_of_them() -> None:
        turns = Turns(1)
        tasks = [asyncio.ensure_future(work(turns, b"a", f"a{i}")) for i in range(5)]
        await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(work(turns, b"b", f"b{i}")) for i in range(2)]
        await asyncio.gather(*tasks)

    asyncio.run(all_of_them())
    assert order == ["a0", "a1", "a2", "b0", "a3", "b1", "a4"]


@pytest.mark.parametrize("seed", range(20))
def test_cancelled_work_loses_no_place(seed: int) -> None:
    dice, running, most, done = random.Random(seed), 0, 0, 0

    async def work(turns: Turns, client: bytes) -> None:
        nonlocal running, most, done
        async with turns.turn(client):
            running += 1
            most = max(most, running)
            try:
                for _ in range(dice.randrange(3)):
                    await asyncio.sleep(0)
                done += 1
            finally:
                running -= 1

    async def all_of_them() -> None:
        turns = Turns(2)
        tasks: list[asyncio.Future[None]] = []
        for _ in range(60):
            tasks.append(asyncio.ensure_future(work(turns, bytes([dice.randrange(4)]))))
            if dice.random() < 0.4:
                dice.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert turns._free_slots == 2 and not turns._waiting
        assert done == sum(not task.cancelled() for task in tasks)

    asyncio.run(all_of_them())
    assert most <= 2 and running == 0 and done > 20
