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
    Quota,
    QuotaExceeded,
    Quotas,
    Reservation,
    most_of,
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


def pool(client: int = 60, total: int = 100, **options: bool) -> Pool:
    return Pool(Quota("prompts", "bytes", client, total, "HTTP 429"), **options)


def turns(client: int, total: int) -> FairSlots:
    return FairSlots(Quota("work", "slots", client, total, "waits"))


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
@given(steps=STEPS)
def test_what_is_used_is_the_sum_of_the_reservations(
    leaves: bool, single: bool, steps: list[tuple[str, bytes, int, int]]
) -> None:
    shared = pool(single=single, leaves=leaves)
    reservations: dict[Reservation, tuple[bytes, int]] = {}
    ended: list[Reservation] = []

    def used(client: bytes | None = None) -> int:
        return sum(count for who, count in reservations.values() if client in (None, who))

    def fits(client: bytes, count: int, before: int = 0) -> bool:
        alone = single and used(client) == before
        others = used() - used(client)
        most = 60
        if leaves and others and used(client) > before:
            most = min(60, (100 - others) * 3 // 4)
        return not count or (
            (used(client) + count <= most or alone)
            and (used() + count <= 100 or (alone and used() == before))
        )

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
    shared = pool(single=True)
    first = shared.take(b"a", 60)
    with pytest.raises(QuotaExceeded) as full:
        shared.take(b"a", 1)
    assert full.value.by_client and "the 60 of one client" in str(full.value)
    other = shared.take(b"b", 40)
    with pytest.raises(QuotaExceeded) as full:
        shared.take(b"c", 1)
    assert not full.value.by_client and "the 100 of all clients" in str(full.value)
    assert shared.take(b"c", 0).amount == 0
    first.release()
    other.release()


@pytest.mark.parametrize("total", [8, 96, 1024])
def test_clients_that_want_all_leave_a_part_for_the_next_one_and_become_equal(total: int) -> None:
    """One that came first has more only until its reservations end."""
    shared = pool(most_of(total), total, leaves=True)
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


@pytest.mark.parametrize("name", ["requests", "sessions", "prompts", "media"])
def test_three_clients_that_want_all_leave_a_part_of_it(name: str) -> None:
    shared: Pool = getattr(Quotas(Settings("phi")), name)
    part = shared.quota.total // 96 or 1
    for client in CLIENTS:
        with suppress(QuotaExceeded):
            while True:
                shared.take(client, part)
    assert shared.used <= shared.quota.total - part
    assert shared.take(b"d", part).amount == part


def test_a_reservation_without_another_one_may_exceed_the_limits() -> None:
    shared = pool(single=True)
    reservation = shared.take(b"a", 50)
    reservation.grow(100)
    assert shared.used == 150
    with pytest.raises(QuotaExceeded) as full:
        shared.take(b"b", 1)
    assert not full.value.by_client
    reservation.release()
    with pytest.raises(QuotaExceeded):
        pool().take(b"a", 61)


def test_reservations_of_many_threads_add_up() -> None:
    shared = pool(1000, 2000)
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
        slots = turns(1, 1)
        tasks = [asyncio.ensure_future(work(slots, b"a", f"a{i}")) for i in range(5)]
        await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(work(slots, b"b", f"b{i}")) for i in range(2)]
        await asyncio.gather(*tasks)
        assert slots.running == slots.waiting == 0

    asyncio.run(all_of_them())
    assert order == ["a0", "a1", "b0", "a2", "b1", "a3", "a4"]


def test_a_client_never_has_more_than_its_share_of_the_slots() -> None:
    async def all_of_them() -> None:
        slots, go = turns(2, 3), asyncio.Event()
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
        slots = turns(1, 1)
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
        slots = turns(2, 3)
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


def test_no_share_exceeds_its_total() -> None:
    assert [most_of(n) for n in (1, 2, 4, 8)] == [1, 2, 3, 6]
    for name, limit in vars(Quotas(Settings("phi"))).items():
        share = limit if isinstance(limit, Quota) else limit.quota
        assert 1 <= share.client <= share.total and share.what and share.unit, name
        assert share.beyond, name
