"""The memory budget for prompts: never exceeded, except by a single request, and fully released."""

from hypothesis import given
from hypothesis import strategies as st

from polyphi.serve.budget import Budget, Share

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "resize", "release"]), st.integers(0, 90), st.integers(0, 9)
    ),
    max_size=40,
)


@given(STEPS)
def test_what_is_held_is_the_sum_of_the_shares(steps: list[tuple[str, int, int]]) -> None:
    budget, reserved = Budget(100), dict[Share, int]()
    released: list[Share] = []
    for step, count, which in steps:
        shares = list(reserved)
        if step == "reserve":
            share = budget.reserve(count)
            fits = not count or not sum(reserved.values()) or sum(reserved.values()) + count <= 100
            assert (share is not None) == fits
            if share is not None:
                reserved[share] = count
        elif shares:
            share = shares[which % len(shares)]
            if step == "resize":
                share.resize(count)
                reserved[share] = count
            else:
                share.release()
                released.append(share)
                del reserved[share]
        for share in released:  # what ended stays so
            share.resize(count)
            share.release()
        assert budget.bytes == sum(reserved.values())
    for share in reserved:
        share.release()
    assert budget.bytes == 0


def test_a_share_of_several_rows_ends_with_the_last() -> None:
    budget = Budget(100)
    share = budget.reserve(300, rows=3)
    assert share is not None
    for _ in range(2):
        share.row_ended()
        assert budget.bytes == 300
    share.row_ended()
    share.release()
    share.row_ended()
    assert budget.bytes == 0
