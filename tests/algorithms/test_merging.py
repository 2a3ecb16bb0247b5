"""Merging: by hand, against the papers' formulas in loops, equivalences and expectations."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import merging

seeds = st.integers(0, 1000)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def ties_by_loop(
    base: list[float], experts: list[list[float]], weights: list[float], kept: int, scale: float
) -> list[float]:
    """Algorithm 1 of the paper for vectors without equal magnitudes."""
    vectors = [[e - b for e, b in zip(expert, base, strict=True)] for expert in experts]
    for vector in vectors:
        for index in sorted(range(len(vector)), key=lambda i: abs(vector[i]))[:-kept]:
            vector[index] = 0.0
    merged: list[float] = []
    for position, origin in enumerate(base):
        entries = [(w, v[position]) for w, v in zip(weights, vectors, strict=True)]
        vote = sum(w * v for w, v in entries)
        agreeing = [(w, v) for w, v in entries if v * vote > 0]
        mean = sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0
        merged.append(origin + scale * mean)
    return merged


def test_by_hand() -> None:
    base, one, two = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0]), torch.tensor([1.0, -3.0])
    half = merging.linear([one, two], weights=[3.0, 1.0])
    torch.testing.assert_close(half, torch.tensor([2.5, 0.0]))
    sums = merging.task_arithmetic(base, [one, two], weights=[0.5, 2.0])
    torch.testing.assert_close(sums, torch.tensor([2.0, -7.0]))


def test_ties_by_hand() -> None:
    """Kept of (4, -1, 2, 0) and (-1, -3, 2, 0): (4, ., 2, .) and (., -3, 2, .)."""
    base = torch.zeros(4)
    experts = [torch.tensor([4.0, -1.0, 2.0, 0.0]), torch.tensor([-1.0, -3.0, 2.0, 0.0])]
    found = merging.ties(base, experts, weights=[1.0, 1.0], density=0.5, scale=1.0)
    assert found.tolist() == [4, -3, 2, 0]
    found = merging.ties(base, experts, weights=[1.0, 1.0], density=1.0, scale=0.5)
    assert found.tolist() == [2, -1, 1, 0]  # 4 outvotes -1; -1 and -3 have mean -2


@given(seed=seeds, kept=st.integers(1, 10), scale=st.floats(0.1, 2))
@settings(max_examples=40, deadline=None)
def test_ties_is_the_papers_algorithm(seed: int, kept: int, scale: float) -> None:
    base, *experts = normal(seed, 4, 10)
    weights = [1.0, 0.5, 2.0]
    found = merging.ties(base, experts, weights=weights, density=kept / 10, scale=scale)
    expected = ties_by_loop(base.tolist(), [e.tolist() for e in experts], weights, kept, scale)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_ties_keeps_equal_magnitudes_at_the_threshold() -> None:
    expert = torch.tensor([1.0, -1.0, 1.0, 0.5])
    found = merging.ties(torch.zeros(4), [expert], weights=[1.0], density=0.5, scale=1.0)
    assert found.tolist() == [1, -1, 1, 0]


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_ties_of_all_entries_with_agreeing_signs_is_the_mean(seed: int) -> None:
    base, signs = normal(seed, 9), normal(seed + 1, 9).sign()
    experts = [base + signs * normal(seed + k, 9).abs() for k in (2, 3, 4)]
    found = merging.ties(base, experts, weights=[1.0, 1.0, 1.0], density=1.0, scale=1.0)
    torch.testing.assert_close(found, torch.stack(experts).mean(dim=0))


def test_one_expert_with_weight_one_is_that_expert() -> None:
    base, expert = normal(0, 2, 5)
    one = [1.0]
    for found in (
        merging.linear([expert], weights=[7.0]),
        merging.task_arithmetic(base, [expert], weights=one),
        merging.ties(base, [expert], weights=one, density=1.0, scale=1.0),
        merging.dare(base, [expert], weights=one, drop_probability=0.0, seed=0, name="x"),
        merging.slerp(base, expert, fraction=1.0),
        merging.slerp(expert, base, fraction=0.0),
    ):
        torch.testing.assert_close(found, expert)
    assert torch.equal(merging.linear([expert], weights=[7.0]), expert)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merging_equal_models_gives_exactly_that_model(dtype: torch.dtype) -> None:
    model = normal(0, 6).to(dtype)
    copies = [model.clone() for _ in range(3)]
    weights = [0.3, 0.2, 0.1]
    for found in (
        merging.linear(copies, weights=weights),
        merging.task_arithmetic(model, copies, weights=weights),
        merging.ties(model, copies, weights=weights, density=0.3, scale=1.0),
        merging.dare(model, copies, weights=weights, drop_probability=0.5, seed=0, name="x"),
        merging.slerp(model, copies[0], fraction=0.3),
    ):
        assert found.dtype == dtype
        assert torch.equal(found, model)


def test_slerp_runs_along_the_arc() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    third = merging.slerp(a, b, fraction=1 / 3)
    torch.testing.assert_close(third, torch.tensor([[math.sqrt(3), 1.0]]))
    assert third.norm().item() == pytest.approx(2)


@given(seed=seeds, fraction=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_slerp_keeps_the_length_and_divides_the_angle(seed: int, fraction: float) -> None:
    a, b = (v / v.norm() for v in normal(seed, 2, 6))
    found = merging.slerp(a, b, fraction=fraction)
    if abs(float(a @ b)) < merging.PARALLEL_COSINE:
        assert found.norm().item() == pytest.approx(1)
        assert math.acos(min(float(a @ found), 1)) == pytest.approx(
            fraction * math.acos(float(a @ b)), abs=1e-6
        )


@pytest.mark.parametrize("other", [[1.0, 1e-4], [-1.0, 0.0], [0.0, 0.0]])
def test_slerp_is_linear_where_the_arc_is_a_line_or_undetermined(other: list[float]) -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor(other)
    torch.testing.assert_close(merging.slerp(a, b, fraction=0.25), 0.75 * a + 0.25 * b)


def test_dare_without_dropping_is_task_arithmetic() -> None:
    base, *experts = normal(0, 4, 8)
    weights = [0.5, 1.0, -0.3]
    found = merging.dare(base, experts, weights=weights, drop_probability=0.0, seed=1, name="x")
    assert torch.equal(found, merging.task_arithmetic(base, experts, weights=weights))


def test_dare_drops_its_share_rescales_the_rest_and_keeps_the_expectation() -> None:
    base, expert = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    base, expert = base.expand(50), expert.expand(50)
    merged = torch.stack(
        [
            merging.dare(base, [expert], weights=[2.0], drop_probability=0.75, seed=seed, name="x")
            for seed in range(400)
        ]
    )
    assert set(merged.unique().tolist()) == {0.0, 8.0}
    # The mean of 20000 draws of 8 with probability 1/4 has standard deviation 0.025.
    assert merged.mean().item() == pytest.approx(2.0, abs=0.1)
    assert (merged.mean(dim=0) - 2.0).abs().max() < 0.8  # and that of every entry 0.17


def test_dare_depends_on_seed_name_and_place_and_not_on_the_order_of_tensors() -> None:
    base, expert = torch.zeros(64), torch.ones(64)

    def run(name: str, seed: int = 0, experts: Sequence[Tensor] = (expert,)) -> Tensor:
        weights = [1.0] * len(experts)
        return merging.dare(
            base, experts, weights=weights, drop_probability=0.5, seed=seed, name=name
        )

    first = {name: run(name) for name in ("a", "b")}
    second = {name: run(name) for name in ("b", "a")}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], run("a", seed=1))
    assert set(run("a", experts=(expert, expert)).tolist()) == {0.0, 2.0, 4.0}


METHODS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "linear": lambda models: merging.linear(models, weights=[1.0, 2.0, 3.0]),
    "task_arithmetic": lambda models: merging.task_arithmetic(
        models[0], models[1:], weights=[0.4, 0.7]
    ),
    "ties": lambda models: merging.ties(
        models[0], models[1:], weights=[0.4, 0.7], density=0.5, scale=1.0
    ),
    "dare": lambda models: merging.dare(
        models[0], models[1:], weights=[0.4, 0.7], drop_probability=0.5, seed=0, name="x"
    ),
    "slerp": lambda models: merging.slerp(models[0], models[1], fraction=0.3),
}


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_computed_in_float32_and_nothing_is_written_into(name: str) -> None:
    models = [model.bfloat16() for model in normal(0, 3, 4, 5)]
    before = [model.clone() for model in models]
    found = METHODS[name](models)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, METHODS[name]([model.float() for model in models]).bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(models, before, strict=True))


def test_a_stream_is_merged_one_tensor_at_a_time() -> None:
    asked: list[str] = []

    def stream() -> list[tuple[str, list[Tensor]]]:
        return [("w", [torch.ones(2), torch.zeros(2)]), ("ids", [torch.arange(3)] * 2)]

    def method(name: str, tensors: Sequence[Tensor]) -> Tensor:
        asked.append(name)
        return merging.linear(tensors, weights=[1.0, 1.0])

    results = merging.merged(iter(stream()), method=method)
    name, first = next(results)
    assert (name, first.tolist()) == ("w", [0.5, 0.5])
    assert [(n, t.tolist()) for n, t in results] == [("ids", [0, 1, 2])]
    assert asked == ["w"]  # buffers of integers are not averaged


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (torch.zeros(3), r"w is torch.float32 \[2\] in model 0 and torch.float32 \[3\] in model 1"),
        (torch.zeros(2).bfloat16(), "and torch.bfloat16"),
    ],
)
def test_models_that_do_not_match_are_named(second: Tensor, message: str) -> None:
    stream = [("w", [torch.zeros(2), second])]
    with pytest.raises(ValueError, match=message):
        list(merging.merged(stream, method=lambda _, tensors: tensors[0]))


def test_buffers_that_differ_cannot_be_merged() -> None:
    stream = [("ids", [torch.arange(2), torch.zeros(2, dtype=torch.int64)])]
    with pytest.raises(ValueError, match=r"ids is torch.int64 and differs between models"):
        list(merging.merged(stream, method=lambda _, tensors: tensors[0]))


def test_impossible_arguments_are_refused() -> None:
    base, experts = torch.zeros(2), [torch.ones(2)]
    ties = partial(merging.ties, base, experts, scale=1.0)
    with pytest.raises(ValueError, match="2 weights for 1 models"):
        merging.linear(experts, weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="sum to 0"):
        merging.linear([base, base], weights=[1.0, -1.0])
    with pytest.raises(ValueError, match=r"density=0.0 must be within \(0, 1\]"):
        ties(weights=[1.0], density=0.0)
    with pytest.raises(ValueError, match="must not be negative"):
        ties(weights=[-1.0], density=0.5)
    with pytest.raises(ValueError, match=r"drop_probability=1.0 must be within \[0, 1\)"):
        merging.dare(base, experts, weights=[1.0], drop_probability=1.0, seed=0, name="x")
