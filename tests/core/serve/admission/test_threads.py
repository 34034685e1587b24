"""Threads are used in turn, a turn for each step, and a thread is free only when its work has ended."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from polyphi.runtime.steps import Steps
from polyphi.serve.admission import threads as threads_module
from polyphi.serve.admission.threads import Threads
from tests.fixtures.servers import until_true


@contextmanager
def threads(total: int) -> Iterator[Threads]:
    pool = Threads(total, "work")
    try:
        yield pool
    finally:
        pool.close()


def work(order: list[str], name: str, count: int) -> Steps[str]:
    for number in range(count):
        yield
        order.append(f"{name}{number}")
    return name


def test_clients_take_turns_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "TURN_SECONDS", 0)
    order: list[str] = []

    async def both() -> list[str]:
        with threads(1) as pool:
            runs = [
                pool.run_steps(client, work(order, name, 4))
                for client, name in ((b"1", "a"), (b"1", "b"), (b"2", "c"))
            ]
            results = await asyncio.gather(*runs)
            assert pool.slots.running == 0
            return results

    assert asyncio.run(both()) == ["a", "b", "c"]
    # Two requests of one client get as many turns as one request of another.
    assert order.index("c3") < order.index("a3") and order.index("c3") < order.index("b3")
    assert [name for name in order if name[0] == "a"] == ["a0", "a1", "a2", "a3"]


def test_short_steps_share_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "TURN_SECONDS", 1000)
    order: list[str] = []

    async def both() -> None:
        with threads(1) as pool:
            runs = [pool.run_steps(c, work(order, c.decode(), 3)) for c in (b"a", b"b")]
            await asyncio.gather(*runs)

    asyncio.run(both())
    assert order == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_b4_cancelled_steps_stop_and_their_thread_is_free_only_then() -> None:
    began, go, order, closed = threading.Event(), threading.Event(), [], []

    def steps() -> Steps[None]:
        try:
            for number in range(100):
                order.append(number)
                if number == 2:
                    began.set()
                    assert go.wait(30)
                yield
        finally:
            closed.append(True)

    async def cancelled() -> None:
        with threads(1) as pool:
            task = asyncio.ensure_future(pool.run_steps(b"a", steps()))
            await asyncio.to_thread(began.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task  # at once: the client has left
            assert pool.slots.running == 1, "its thread is still busy"
            other = asyncio.ensure_future(pool.run(b"b", str, 5))
            await asyncio.sleep(0.05)
            assert not other.done()
            go.set()
            assert await other == "5"
            assert pool.slots.running == 0

    asyncio.run(cancelled())
    assert order == [0, 1, 2] and closed


def test_steps_stop_when_the_server_does() -> None:
    began, order = threading.Event(), []

    def steps() -> Steps[None]:
        for number in range(1000):
            order.append(number)
            began.set()
            time.sleep(0.05)
            yield

    async def closing() -> None:
        with threads(1) as pool:
            task = asyncio.ensure_future(pool.run_steps(b"a", steps()))
            await asyncio.to_thread(began.wait, 30)
            await asyncio.to_thread(pool.close)
            with pytest.raises(RuntimeError):
                await task

    asyncio.run(closing())
    assert len(order) < 100


def test_errors_of_work_free_its_thread(caplog: pytest.LogCaptureFixture) -> None:
    def steps() -> Steps[None]:
        yield
        raise ValueError("damaged")

    async def failing() -> None:
        with threads(1) as pool:
            for _ in range(3):
                with pytest.raises(ValueError, match="damaged"):
                    await pool.run_steps(b"a", steps())
                with pytest.raises(ZeroDivisionError):
                    await pool.run(b"a", lambda: 1 // 0)
            go = threading.Event()

            def late() -> None:
                go.wait(30)
                raise ValueError("nobody waits for it")

            task = asyncio.ensure_future(pool.run(b"a", late))
            await until_true(lambda: pool.slots.running == 1)
            task.cancel()
            go.set()
            await until_true(lambda: pool.slots.running == 0)
        with pytest.raises(RuntimeError):
            await pool.run(b"a", str)
        assert pool.slots.running == 0

    asyncio.run(failing())
    assert not caplog.records


def test_a_client_leaves_threads_to_others() -> None:
    go = threading.Event()

    async def both() -> None:
        with threads(4) as pool:
            tasks = [asyncio.ensure_future(pool.run(b"a", go.wait, 30)) for _ in range(9)]
            await until_true(lambda: pool.slots.running == 3)
            assert await pool.run(b"b", str, 1) == "1"
            go.set()
            assert all(await asyncio.gather(*tasks))

    asyncio.run(both())
