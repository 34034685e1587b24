"""What clients share: amounts are never exceeded and fully released, and clients that wait for slots take turns."""

import asyncio
import random
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyphi.serve.admission.quotas import (
    FairSlots,
    Pool,
    QuotaExceeded,
    Quotas,
    Reservation,
)
from polyphi.serve.admission.settings import Settings

CLIENTS = (b"a", b"b", b"c")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "grow", "resize", "release"]),
        st.sampled_from(CLIENTS),
        st.integers(0, 90),
        st.integers(0, 9),
    ),
    max_size=50,
)


@pytest.mark.parametrize("always", [0, 5])
@pytest.mark.parametrize("first", [False, True])
@given(steps=STEPS)
def test_what_is_used_is_the_sum_of_the_reservations(
    always: int, first: bool, steps: list[tuple[str, bytes, int, int]]
) -> None:
    shared = Pool("bytes", 100, always=always, first=first)
    reservations: dict[Reservation, tuple[bytes, int]] = {}
    ended: list[Reservation] = []

    def used(client: bytes | None = None) -> int:
        return sum(count for who, count in reservations.values() if client in (None, who))

    def fits(client: bytes, count: int, before: int = 0) -> bool:
        is_only = used(client) == before
        if not count or before + count <= always or used() == before or (is_only and first):
            return True
        left = 100 - used() + used(client)
        most = left - left // 4 if first else left * 3 // 4
        return (is_only or used(client) + count <= most) and used() + count <= 100

    for step, client, count, which in steps:
        if step == "take":
            expected = fits(client, count)
            try:
                reservations[shared.take(client, count)] = (client, count)
                assert expected
            except QuotaExceeded as full:
                assert not expected and full.amount == count
                assert full.in_use == (used(client) if full.by_client else used())
        elif reservations:
            reservation = list(reservations)[which % len(reservations)]
            client, before = reservations[reservation]
            if step == "grow":
                expected = fits(client, count, before)
                try:
                    reservation.grow(count)
                    reservations[reservation] = (client, before + count)
                    assert expected
                except QuotaExceeded:
                    assert not expected
            elif step == "resize":
                reservation.resize(count)
                reservations[reservation] = (client, count)
            else:
                reservation.release()
                ended.append(reservation)
                del reservations[reservation]
        for reservation in ended:  # a thread that comes too late changes nothing
            reservation.grow(count)
            reservation.resize(count)
            reservation.release()
        assert shared.used == used()
        assert [shared.used_by(c) for c in CLIENTS] == [used(c) for c in CLIENTS]
    for reservation in reservations:
        reservation.release()
    assert shared.used == 0 and not shared._by_client


def test_b9_a_client_leaves_its_share_to_others() -> None:
    shared = Pool("bytes", 100)
    first = [shared.take(b"a", 40), shared.take(b"a", 35)]
    with pytest.raises(QuotaExceeded) as full:
        shared.take(b"a", 1)
    assert full.value.by_client and "the 75 of one client" in str(full.value)
    other = shared.take(b"b", 25)
    with pytest.raises(QuotaExceeded) as full:
        shared.take(b"c", 1)
    assert not full.value.by_client and "the 100 of all clients" in str(full.value)
    assert shared.take(b"c", 0).amount == 0
    for one in (*first, other):
        one.release()
    assert shared.used == 0


@pytest.mark.parametrize("total", [8, 96, 1024])
def test_clients_that_want_all_leave_a_part_for_the_next_one_and_become_equal(total: int) -> None:
    """One that came first has more only until its reservations end."""
    shared = Pool("requests", total)
    reservations: dict[bytes, list[Reservation]] = {client: [] for client in CLIENTS}

    def take_all(client: bytes) -> None:
        with suppress(QuotaExceeded):
            while True:
                reservations[client].append(shared.take(client, 1))

    for number, client in enumerate(CLIENTS):
        take_all(client)
        assert len(reservations[client]) >= (total >> 2 * number) / 2
    assert total == 8 or shared.used < total, "something is left for the next one"
    for _ in range(2 * total):
        for client in CLIENTS:
            if reservations[client]:
                reservations[client].pop().release()
            for other in CLIENTS:
                take_all(other)
    amounts = [shared.used_by(client) for client in CLIENTS]
    assert sum(amounts) == shared.used <= total and max(amounts) <= 1.05 * min(amounts) + 2, amounts


@pytest.mark.parametrize("name", ["requests", "sessions", "bytes"])
def test_three_clients_that_want_all_leave_a_part_of_it(name: str) -> None:
    shared: Pool = getattr(Quotas(Settings("phi")), name)
    part = shared.total // 96 or 1
    for client in CLIENTS:
        with suppress(QuotaExceeded):
            while True:
                shared.take(client, part)
    assert shared.used <= shared.total - part
    assert shared.take(b"d", part).amount == part


def test_a_client_without_a_request_is_always_admitted() -> None:
    shared = Quotas(Settings("phi", max_waiting=0), 1).requests
    assert [shared.take(client, 1).amount for client in CLIENTS] == [1, 1, 1]
    with pytest.raises(QuotaExceeded):
        shared.take(b"a", 1)


def test_reservations_of_many_threads_add_up() -> None:
    shared = Pool("bytes", 2000)
    most, refused = [0], [0]

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(300):
            try:
                reservation = shared.take(CLIENTS[seed % 3], dice.randrange(400))
                reservation.grow(dice.randrange(400))
            except QuotaExceeded:
                refused[0] += 1
            most[0] = max(most[0], shared.used)
            reservation.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.used == 0 and not shared._by_client and most[0] <= 2000


def test_clients_take_turns() -> None:
    order: list[str] = []

    async def work(slots: FairSlots, client: bytes, name: str) -> None:
        async with slots.exclusive(client):
            await asyncio.sleep(0)
            order.append(name)

    async def all_of_them() -> None:
        slots = FairSlots(1)
        tasks = [asyncio.ensure_future(work(slots, b"a", f"a{i}")) for i in range(5)]
        await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(work(slots, b"b", f"b{i}")) for i in range(2)]
        await asyncio.gather(*tasks)
        assert slots.running == slots.waiting == 0

    asyncio.run(all_of_them())
    assert order == ["a0", "a1", "b0", "a2", "b1", "a3", "a4"]


def test_a_client_never_has_more_than_its_share_of_the_slots() -> None:
    async def all_of_them() -> None:
        slots, go = FairSlots(3), asyncio.Event()
        running: list[bytes] = []

        async def work(client: bytes) -> None:
            async with slots.exclusive(client):
                running.append(client)
                await go.wait()

        tasks = [asyncio.ensure_future(work(b"a")) for _ in range(6)]
        await asyncio.sleep(0.01)
        assert running == [b"a"] * 2 and (slots.running, slots.waiting) == (2, 4)
        tasks += [asyncio.ensure_future(work(client)) for client in (b"b", b"c")]
        await asyncio.sleep(0.01)
        assert running == [b"a", b"a", b"b"], "the slot that a may not have is another client's"
        tasks[3].cancel()
        await asyncio.sleep(0)
        assert slots.waiting == 4
        go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(running) == [b"a"] * 5 + [b"b", b"c"] and slots.running == 0

    asyncio.run(all_of_them())


def test_work_that_is_cancelled_just_after_it_got_its_slot_frees_it() -> None:
    async def both() -> None:
        slots = FairSlots(1)
        await slots.take(b"a")
        waiting = asyncio.ensure_future(slots.take(b"b"))
        last = asyncio.ensure_future(slots.take(b"c"))
        await asyncio.sleep(0)
        slots.release(b"a")  # b's task has its slot now, but hasn't run yet
        waiting.cancel()
        await asyncio.wait_for(last, 10)
        assert waiting.cancelled() and slots.running == 1
        slots.release(b"c")
        assert slots.running == 0 and not slots._running and not slots._waiting

    asyncio.run(both())


@pytest.mark.parametrize("seed", range(20))
def test_cancelled_work_loses_no_slot(seed: int) -> None:
    dice, running, most, done = random.Random(seed), 0, 0, 0
    by_client = dict.fromkeys(range(4), 0)

    async def work(slots: FairSlots, client: int) -> None:
        nonlocal running, most, done
        async with slots.exclusive(bytes([client])):
            running += 1
            by_client[client] += 1
            most = max(most, running)
            assert by_client[client] <= 2
            try:
                for _ in range(dice.randrange(3)):
                    await asyncio.sleep(0)
                done += 1
            finally:
                running -= 1
                by_client[client] -= 1

    async def all_of_them() -> None:
        slots = FairSlots(3)
        tasks: list[asyncio.Future[None]] = []
        for _ in range(60):
            tasks.append(asyncio.ensure_future(work(slots, dice.randrange(4))))
            if dice.random() < 0.4:
                dice.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert slots.running == 0 and not slots._waiting and not slots._running
        assert done == sum(not task.cancelled() for task in tasks)

    asyncio.run(all_of_them())
    assert most <= 3 and running == 0 and done > 20


def test_two_clients_that_take_all_slots_leave_one_to_a_third() -> None:
    async def work() -> None:
        for total in (8, 16, 32):
            slots = FairSlots(total)
            tasks = [
                asyncio.ensure_future(slots.take(client))
                for client in (b"a", b"b")
                for _ in range(total)
            ]
            await asyncio.sleep(0)
            await asyncio.wait_for(slots.take(b"c"), 10)
            assert slots.waiting
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(work())
