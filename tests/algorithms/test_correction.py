"""Corrections of the mismatch: tables, plain loops, exact weights, invariances."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlstack.algorithms import correction
from rlstack.algorithms.correction import Correction, Level, importance_ratios

LEVELS: tuple[Level, ...] = ("token", "sequence", "geometric")
METHODS: dict[str, Callable[[Tensor, Tensor], Correction]] = {
    **{
        f"truncated {level}": lambda x, m, level=level: correction.truncated(
            importance_ratios(x, m, level=level), cap=1.5
        )
        for level in LEVELS
    },
    **{
        f"masked {level}": lambda x, m, level=level: correction.masked(
            importance_ratios(x, m, level=level), low=0.5, high=1.5
        )
        for level in LEVELS
    },
    "rejected": lambda x, m: correction.rejected(
        importance_ratios(x, m, level="geometric"), low=0.8, high=1.25
    ),
    "second_moment": lambda x, m: correction.second_moment(x, m, threshold=0.3),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def logs(*ratios: float) -> Tensor:
    return torch.tensor([ratios], dtype=torch.float64).log()


def ones(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def random_case(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 5, generator=generator) > 0.3
    mask[0] = False
    log_ratio = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return torch.where(mask, log_ratio, 0.0), mask


def plain_loop(log_ratio: Tensor, mask: Tensor, name: str) -> list[list[float]]:
    """Weight of every loss token, from the definitions; 0 on padding."""
    kind, _, level = name.partition(" ")
    result = []
    for row, chosen in zip(log_ratio.tolist(), mask.tolist(), strict=True):
        own = [x for x, used in zip(row, chosen, strict=True) if used]
        weights = []
        for x, used in zip(row, chosen, strict=True):
            if not used:
                weights.append(0.0)
                continue
            if level == "token":
                ratio = math.exp(x)
            elif level == "sequence":
                ratio = math.prod(math.exp(y) for y in own)
            else:
                ratio = math.prod(math.exp(y) for y in own) ** (1 / len(own))
            match kind:
                case "truncated":
                    weights.append(min(ratio, 1.5))
                case "masked":
                    weights.append(ratio if 0.5 <= ratio <= 1.5 else 0.0)
                case _:
                    weights.append(1.0 if 0.8 <= ratio <= 1.25 else 0.0)
        result.append(weights)
    return result


def second_moment_loop(log_ratio: Tensor, mask: Tensor) -> list[list[float]]:
    kept = sorted(log_ratio[mask].tolist(), key=abs)
    while kept and sum(x * x for x in kept) / len(kept) > 0.3:
        kept.pop()
    return [
        [math.exp(x) if used and x in kept else 0.0 for x, used in zip(row, chosen, strict=True)]
        for row, chosen in zip(log_ratio.tolist(), mask.tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_equal_to_a_plain_loop(name: str, seed: int) -> None:
    log_ratio, mask = random_case(seed)
    found = METHODS[name](log_ratio, mask)
    loop = second_moment_loop(log_ratio, mask) if name == "second_moment" else None
    expected = torch.tensor(loop or plain_loop(log_ratio, mask, name), dtype=torch.float64)
    torch.testing.assert_close(found.weights[mask], expected[mask])
    plain = METHODS[name](torch.zeros_like(log_ratio), mask)
    assert not plain.touched.any()
    assert torch.equal(plain.weights, torch.ones_like(log_ratio))


def test_truncation_by_hand() -> None:
    log_ratio = logs(0.5, 1.5, 8.0)
    mask = ones(log_ratio)
    by_token = correction.truncated(importance_ratios(log_ratio, mask, level="token"), cap=2.0)
    assert by_token.weights.tolist() == [pytest.approx([0.5, 1.5, 2.0])]
    assert by_token.touched.tolist() == [[False, False, True]]
    product = importance_ratios(log_ratio, mask, level="sequence")
    assert product.tolist() == [pytest.approx([6.0] * 3)]
    assert not correction.truncated(product, cap=100.0).touched.any()
    mean = importance_ratios(log_ratio, mask, level="geometric")
    assert mean.tolist() == [pytest.approx([6.0 ** (1 / 3)] * 3)]


def test_masking_by_hand() -> None:
    """IcePop's bounds: both sides are dropped, what is on a bound stays."""
    ratios = torch.tensor([[0.4, 0.5, 1.0, 5.0, 5.1]])
    found = correction.masked(ratios, low=0.5, high=5.0)
    torch.testing.assert_close(found.weights, torch.tensor([[0.0, 0.5, 1.0, 5.0, 0.0]]))
    assert found.touched.tolist() == [[True, False, False, False, True]]
    kept = correction.rejected(ratios, low=0.5, high=5.0)
    assert kept.weights.tolist() == [[0, 1, 1, 1, 0]]
    assert torch.equal(kept.touched, found.touched)


def test_one_wild_token_rejects_a_short_rollout_and_not_a_long_one() -> None:
    log_ratio = torch.zeros(2, 50)
    log_ratio[:, 0] = math.log(1.3)
    mask = torch.zeros(2, 50, dtype=torch.bool)
    mask[0, :4], mask[1] = True, True
    ratios = importance_ratios(log_ratio, mask, level="geometric")
    found = correction.rejected(ratios, low=0.99, high=1.01)
    assert not found.weights[0, :4].any()
    assert found.weights[1].all()


def test_second_moment_by_hand() -> None:
    log_ratio = torch.tensor([[0.1, -0.2, 0.3, -1.0]])
    found = correction.second_moment(log_ratio, ones(log_ratio), threshold=0.04)
    # Means of the smallest 1, 2, 3, 4 squares: 0.01, 0.025, 0.0467, 0.285.
    assert found.touched.tolist() == [[False, False, True, True]]
    expected = torch.tensor([[math.exp(0.1), math.exp(-0.2), 0.0, 0.0]])
    torch.testing.assert_close(found.weights, expected)


def test_equal_log_ratios_are_dropped_together() -> None:
    log_ratio = torch.tensor([[0.1, 0.5, -0.5, 0.5]])
    found = correction.second_moment(log_ratio, ones(log_ratio), threshold=0.15)
    assert found.touched.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("level", LEVELS)
def test_open_bounds_give_exact_importance_weights(level: Level) -> None:
    log_ratio, mask = random_case(0)
    ratios = importance_ratios(log_ratio, mask, level=level)
    for found in (
        correction.truncated(ratios, cap=math.inf),
        correction.masked(ratios, low=0.0, high=math.inf),
    ):
        assert torch.equal(found.weights, ratios)
        assert not found.touched.any()
    torch.testing.assert_close(
        importance_ratios(log_ratio, mask, level="token")[mask], log_ratio[mask].exp()
    )


def test_a_ratio_at_the_cap_is_not_truncated() -> None:
    zeros = torch.zeros(1, 3)
    for level in LEVELS:
        ratios = importance_ratios(zeros, ones(zeros), level=level)
        assert not correction.truncated(ratios, cap=1.0).touched.any()


@every_method
@given(seed=st.integers(0, 1000), padding=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_padding_and_the_order_of_rows_do_not_matter(
    method: Callable[[Tensor, Tensor], Correction], seed: int, padding: int
) -> None:
    log_ratio, mask = random_case(seed)
    expected = method(log_ratio, mask)
    rubbish = torch.where(mask, log_ratio, torch.nan)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(rubbish, (0, padding), value=math.inf)[order]
    padded_mask = torch.nn.functional.pad(mask, (0, padding))[order]
    found = method(padded, padded_mask)
    torch.testing.assert_close(found.weights[:, :5], expected.weights[order])
    assert found.weights.isfinite().all()
    assert torch.equal(
        found.touched[:, :5][padded_mask[:, :5]], expected.touched[order][mask[order]]
    )


@every_method
@pytest.mark.parametrize("extreme", [1000.0, -1000.0])
def test_extreme_ratios_stay_finite_and_carry_no_gradient(
    method: Callable[[Tensor, Tensor], Correction], extreme: float
) -> None:
    log_ratio = torch.tensor([[extreme, 0.0]], requires_grad=True)
    found = method(log_ratio, ones(log_ratio))
    assert found.weights.isfinite().all()
    assert not found.weights.requires_grad
    assert found.weights.dtype == torch.float32


def test_staleness_weights_decay_from_one() -> None:
    found = correction.staleness_weights(torch.tensor([[0, 1, 3, 8]]), exponent=0.5)
    assert found.weights.tolist() == [pytest.approx([1.0, 0.5**0.5, 0.5, 1 / 3])]
    assert found.touched.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("second", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("first", [name for name in METHODS if name != "second_moment"])
def test_two_composed_are_the_product_of_both(first: str, second: Level) -> None:
    """In either order: weights by token or rollout, and what is dropped by token or rollout."""
    log_ratio, mask = random_case(5)
    method = METHODS[first](log_ratio, mask)
    ratios = importance_ratios(log_ratio, mask, level=second)
    dropping = correction.rejected(ratios, low=0.8, high=1.25)
    weights = plain_loop(log_ratio, mask, first)
    for row, chosen in enumerate(mask.tolist()):
        own = [x for x, used in zip(log_ratio[row].tolist(), chosen, strict=True) if used]
        total = sum(own)
        for column, used in enumerate(chosen):
            if not used:
                continue
            mean = {"sequence": total, "geometric": total / len(own)}
            ratio = math.exp(mean.get(second, float(log_ratio[row, column])))
            weights[row][column] *= 0.8 <= ratio <= 1.25
    for parts in ([method, dropping], [dropping, method]):
        found = correction.composed(parts)
        assert torch.where(mask, found.weights, 0.0).tolist() == [
            pytest.approx(row) for row in weights
        ]
        assert torch.equal(found.touched, method.touched | dropping.touched)
    assert 0 < int((found.weights[mask] == 0).sum()) < int(mask.sum())
