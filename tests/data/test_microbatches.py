import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.data.microbatches import plan_evaluation, plan_microbatches


@st.composite
def packable(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Lengths, ranks and a budget for which a plan exists."""
    data_parallel = draw(st.integers(1, 5))
    num_rows = data_parallel * draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(1, 60), min_size=num_rows, max_size=num_rows))
    max_tokens = draw(st.integers(max(lengths), 400))
    return lengths, data_parallel, max_tokens


def load(rows: tuple[int, ...], lengths: list[int]) -> int:
    return sum(lengths[row] for row in rows)


@given(packable())
def test_every_row_exactly_once(case: tuple[list[int], int, int]) -> None:
    lengths, data_parallel, max_tokens = case
    plan = plan_microbatches(lengths, data_parallel=data_parallel, max_tokens=max_tokens)
    rows = [row for rank in plan for microbatch in rank for row in microbatch]
    assert sorted(rows) == list(range(len(lengths)))


@given(packable())
def test_same_number_of_non_empty_microbatches_within_budget(
    case: tuple[list[int], int, int],
) -> None:
    lengths, data_parallel, max_tokens = case
    plan = plan_microbatches(lengths, data_parallel=data_parallel, max_tokens=max_tokens)
    assert len(plan) == data_parallel
    assert len({len(rank) for rank in plan}) == 1
    for rank in plan:
        for microbatch in rank:
            assert microbatch
            assert load(microbatch, lengths) <= max_tokens


@given(packable())
def test_ranks_and_microbatches_differ_by_one_row_at_most(
    case: tuple[list[int], int, int],
) -> None:
    lengths, data_parallel, max_tokens = case
    plan = plan_microbatches(lengths, data_parallel=data_parallel, max_tokens=max_tokens)
    microbatch_loads = [load(rows, lengths) for rank in plan for rows in rank]
    rank_loads = [sum(load(rows, lengths) for rows in rank) for rank in plan]
    assert max(microbatch_loads) - min(microbatch_loads) <= max(lengths)
    assert max(rank_loads) - min(rank_loads) <= max(lengths)


@given(packable())
def test_microbatches_at_least_half_full_but_for_rounding_up_to_the_ranks(
    case: tuple[list[int], int, int],
) -> None:
    lengths, data_parallel, max_tokens = case
    plan = plan_microbatches(lengths, data_parallel=data_parallel, max_tokens=max_tokens)
    num_microbatches = data_parallel * len(plan[0])
    # One round fewer would have overflowed, which needs more than half of the budget in each.
    assert (num_microbatches - data_parallel) * max_tokens < 2 * sum(lengths)


@given(packable())
def test_deterministic(case: tuple[list[int], int, int]) -> None:
    lengths, data_parallel, max_tokens = case
    first = plan_microbatches(lengths, data_parallel=data_parallel, max_tokens=max_tokens)
    again = plan_microbatches(list(lengths), data_parallel=data_parallel, max_tokens=max_tokens)
    assert first == again


@pytest.mark.parametrize(
    ("lengths", "data_parallel", "max_tokens", "expected"),
    [
        ([5], 1, 5, (((0,),),)),
        ([5, 5], 1, 10, (((0, 1),),)),
        ([5, 5], 1, 9, (((0,), (1,)),)),
        ([6, 4, 6, 4], 1, 10, (((0, 1), (2, 3)),)),
        ([6, 4, 6, 4], 2, 10, (((0, 1),), ((2, 3),))),
        # The rank with the heavier micro-batch of the first round gets the lighter of the next.
        ([9, 8, 7, 5], 2, 9, (((0,), (3,)), ((1,), (2,)))),
    ],
)
def test_hand_computed_plans(
    lengths: list[int],
    data_parallel: int,
    max_tokens: int,
    expected: tuple[tuple[tuple[int, ...], ...], ...],
) -> None:
    assert (
        plan_microbatches(lengths, data_parallel=data_parallel, max_tokens=max_tokens) == expected
    )


def test_a_typical_batch_takes_the_fewest_microbatches_possible() -> None:
    lengths = [100 + 37 * row % 400 for row in range(256)]
    plan = plan_microbatches(lengths, data_parallel=4, max_tokens=4096)
    assert len(plan[0]) == -(-sum(lengths) // (4 * 4096))


@pytest.mark.parametrize(
    ("lengths", "data_parallel", "max_tokens", "message"),
    [
        ([5], 2, 9, "1 rows cannot be shared by 2 ranks"),
        ([], 1, 9, "0 rows cannot be shared by 1 ranks"),
        ([5, 0], 1, 9, "row 1 has 0 tokens"),
        (
            [5, 12, 3],
            1,
            10,
            "row 1 has 12 tokens, more than trainer.max_tokens_per_microbatch=10; "
            "raise it to at least 12",
        ),
        # Three micro-batches are needed, two ranks want four, and there are three rows.
        ([10, 10, 10], 2, 10, "3 rows of up to 10 tokens cannot be split .* multiple of"),
    ],
)
def test_errors(lengths: list[int], data_parallel: int, max_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_microbatches(lengths, data_parallel=data_parallel, max_tokens=max_tokens)


def flat_evaluation(
    lengths: list[int], data_parallel: int, max_tokens: int
) -> list[tuple[int, ...]]:
    plan = plan_evaluation(lengths, data_parallel=data_parallel, max_tokens=max_tokens)
    assert len({len(batches) for batches in plan}) == 1, "ranks wait for each other"
    for batches in plan:
        for rows, _ in batches:
            assert rows
            assert sum(lengths[row] for row in rows) <= max_tokens
    return [rows for batches in plan for rows, counts in batches if counts]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 5))
def test_evaluation_counts_every_row_once_whatever_their_number(
    lengths: list[int], data_parallel: int
) -> None:
    counted = flat_evaluation(lengths, data_parallel, max_tokens=10)
    assert sorted(row for rows in counted for row in rows) == list(range(len(lengths)))


def test_a_rank_without_rows_repeats_one_that_does_not_count() -> None:
    plan = plan_evaluation([5, 5, 5], data_parallel=2, max_tokens=5)
    assert sorted(batch for batches in plan for batch in batches) == [
        ((0,), False),
        ((0,), True),
        ((1,), True),
        ((2,), True),
    ]
