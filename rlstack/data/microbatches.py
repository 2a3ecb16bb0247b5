"""Which rows go into which micro-batch of which rank. Pure: numbers in, indices out."""

from collections.abc import Sequence
from heapq import heapify, heapreplace


def plan_microbatches(
    lengths: Sequence[int], *, data_parallel: int, max_tokens: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Row indices of every micro-batch of every rank: `plan[rank][microbatch]`.

    Every rank gets the same number of micro-batches, because sharded trainers communicate in each;
    none is empty and none holds more than `max_tokens` tokens. Rows go, longest first, to the
    micro-batch that holds the fewest tokens (longest processing time first; Graham 1969), over the
    smallest number of micro-batches with which this stays within the budget. Token loads of two
    ranks then differ by one row at most, and so do those of two micro-batches.

    A plan always exists if the number of rows is a multiple of `data_parallel` and no row is longer
    than `max_tokens`. Deterministic: all ranks compute the same plan.

    lengths: tokens of each row, at least 1.

    Raises:
        ValueError: if a row is empty or longer than `max_tokens`, if there are fewer rows than
            ranks, or if every split within the budget leaves a rank without work.
    """
    if data_parallel < 1 or len(lengths) < data_parallel:
        raise ValueError(
            f"{len(lengths)} rows cannot be shared by {data_parallel} ranks: every rank needs at "
            "least one; use more rows per update or fewer placement.trainer_ranks"
        )
    longest, shortest = max(lengths), min(lengths)
    if shortest < 1:
        raise ValueError(
            f"row {lengths.index(shortest)} has {shortest} tokens; expected at least 1"
        )
    if longest > max_tokens:
        raise ValueError(
            f"row {lengths.index(longest)} has {longest} tokens, more than "
            f"trainer.max_tokens_per_microbatch={max_tokens}; raise it to at least {longest}"
        )
    fewest = -(-sum(lengths) // (max_tokens * data_parallel))
    for per_rank in range(fewest, len(lengths) // data_parallel + 1):
        microbatches = _balance(lengths, num_bins=per_rank * data_parallel)
        if max(sum(lengths[row] for row in rows) for rows in microbatches) <= max_tokens:
            return _deal(microbatches, lengths, data_parallel=data_parallel)
    raise ValueError(
        f"{len(lengths)} rows of up to {longest} tokens cannot be split into the same number of "
        f"micro-batches for each of {data_parallel} ranks within trainer.max_tokens_per_microbatch="
        f"{max_tokens}; raise it, or make the number of rows a multiple of placement.trainer_ranks"
    )


def plan_evaluation(
    lengths: Sequence[int], *, data_parallel: int, max_tokens: int
) -> tuple[tuple[tuple[tuple[int, ...], bool], ...], ...]:
    """Like `plan_microbatches` for any number of rows: pairs of row indices and whether they count.

    Where there is not enough for every rank, one repeats a row that another has, and must leave it
    out of its sums.

    Raises:
        ValueError: as `plan_microbatches` does, but for the number of rows.
    """
    spare = -len(lengths) % data_parallel
    plan = plan_microbatches(
        [*lengths, *[1] * spare], data_parallel=data_parallel, max_tokens=max_tokens
    )
    real = ([[r for r in rows if r < len(lengths)] for rows in batches] for batches in plan)
    return tuple(tuple((tuple(r or [0]), bool(r)) for r in batches) for batches in real)


def _balance(lengths: Sequence[int], *, num_bins: int) -> list[tuple[int, ...]]:
    """Longest-processing-time assignment of all rows to `num_bins` non-empty bins."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    lightest = [(0, index) for index in range(num_bins)]
    heapify(lightest)
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        load, index = lightest[0]
        bins[index].append(row)
        heapreplace(lightest, (load + lengths[row], index))
    return [tuple(sorted(rows)) for rows in bins]


def _deal(
    microbatches: Sequence[tuple[int, ...]], lengths: Sequence[int], *, data_parallel: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Deal micro-batches out, heaviest first, one per rank and round.

    In a round the heaviest goes to the rank with the fewest tokens so far. Ranks wait for each
    other in every micro-batch, so those of one round should be alike.
    """
    loads = [sum(lengths[row] for row in rows) for rows in microbatches]
    heaviest_first = sorted(range(len(microbatches)), key=lambda index: (-loads[index], index))
    plan: list[list[tuple[int, ...]]] = [[] for _ in range(data_parallel)]
    rank_loads = [0] * data_parallel
    for start in range(0, len(microbatches), data_parallel):
        lightest_first = sorted(range(data_parallel), key=lambda rank: (rank_loads[rank], rank))
        round_ = heaviest_first[start : start + data_parallel]
        for rank, index in zip(lightest_first, round_, strict=True):
            plan[rank].append(microbatches[index])
            rank_loads[rank] += loads[index]
    return tuple(tuple(rows) for rows in plan)
