"""Schedules, gates, routing and error policies on verdicts that are given."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.combination import Component, WeightSchedule, check, combine, with_retries
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

REQUEST = RewardRequest(prompt="p", response="r", data_source="shop")
BROKEN = Score(value=None, errors=("a: broken",))
UNJUDGED = Score(value=None)


def total(*components: Component, step: int = 0, **verdicts: float | Score) -> Score:
    scores = {
        label: verdict if isinstance(verdict, Score) else Score(value=verdict)
        for label, verdict in verdicts.items()
    }
    check(components)
    return combine(components, REQUEST, scores, step=step)


@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (5, 0.75), (10, 0.5), (20, 0.0), (30, 0.0)])
def test_a_schedule_is_linear_and_stays_at_its_end(step: int, weight: float) -> None:
    schedule = WeightSchedule(start=1.0, end=0.0, steps=20)
    score = total(Component("a", schedule), step=step, a=2.0)
    assert (score.value, score.parts) == (pytest.approx(2.0 * weight), {"a": 2.0})


@pytest.mark.parametrize(
    ("gate", "value"),
    [(1.0, 1.1), (0.6, 0.06), (Score(value=None), None), (BROKEN, None)],
)
def test_a_gate(gate: float | Score, value: float | None) -> None:
    """Passed, not passed (the gated one counts 0), and not judged (it leaves the sum)."""
    components = Component("b", gate="a"), Component("a", 0.1)
    score = total(*components, a=gate, b=1.0)
    assert score.value == (None if value is None else pytest.approx(value))
    assert score.parts["b"] == 1.0


def test_a_gate_of_ones_own_threshold() -> None:
    components = Component("b", gate="a", gate_min=0.5), Component("a", 0.0)
    assert total(*components, a=0.5, b=1.0).value == 1.0
    assert total(*components, a=0.4, b=1.0).value == 0.0


def test_a_gate_that_does_not_apply_to_the_row_is_open() -> None:
    components = Component("b", gate="a"), Component("a", data_sources=("elsewhere",))
    assert not components[1].applies(REQUEST)
    assert total(*components, b=1.0).value == 1.0


@pytest.mark.parametrize(
    ("on_error", "value", "parts"),
    [
        ("unjudged", 2.0, {"b": 2.0}),
        ("retry", 2.0, {"b": 2.0}),
        ("zero", 2.0, {"a": 0.0, "b": 2.0}),
        ("drop", None, {"b": 2.0}),
    ],
)
def test_error_policies(on_error: str, value: float | None, parts: dict[str, float]) -> None:
    component = Component("a", on_error=on_error)  # pyright: ignore[reportArgumentType]
    score = total(component, Component("b"), a=BROKEN, b=2.0)
    assert score == Score(value=value, parts=parts, errors=("a: broken",))


def test_raise_names_component_row_and_cause() -> None:
    with pytest.raises(RewardError, match=r"'a' failed .*'shop', and its on_error .*a: broken"):
        total(Component("a", on_error="raise"), a=BROKEN)


@pytest.mark.parametrize("on_error", ["zero", "drop", "raise"])
def test_what_cannot_be_judged_has_not_failed(on_error: str) -> None:
    component = Component("a", on_error=on_error)  # pyright: ignore[reportArgumentType]
    assert total(component, Component("b"), a=UNJUDGED, b=2.0) == Score(value=2.0, parts={"b": 2.0})


@pytest.mark.parametrize(
    ("on_error", "num_calls"), [("retry", 3), ("unjudged", 1), ("zero", 1), ("raise", 1)]
)
def test_only_retry_calls_again(on_error: str, num_calls: int) -> None:
    calls: list[int] = []

    def attempt() -> list[Score]:
        calls.append(1)
        return [BROKEN]

    component = Component("a", on_error=on_error)  # pyright: ignore[reportArgumentType]
    assert with_retries(component, attempt) == [BROKEN]
    assert len(calls) == num_calls


def test_retry_ends_with_the_first_success() -> None:
    verdicts = iter([[BROKEN], [Score(value=1.0)]])
    assert with_retries(Component("a", on_error="retry"), lambda: next(verdicts))[0].value == 1.0


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([Component("a", gate="b")], "'a' has the gate 'b', which is no other .* others: none"),
        ([Component("a", gate="a"), Component("c")], "the gate 'a', .*The others: c"),
        ([Component("a"), Component("b", label="a")], "'a' is listed more than once"),
        (
            [Component("a", WeightSchedule(start=1.0, end=float("nan"), steps=2))],
            "expected a finite number",
        ),
    ],
)
def test_check_refuses(components: list[Component], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        check(components)


def test_labels_tell_two_uses_of_one_reward_apart() -> None:
    score = total(Component("a", 2.0), Component("a", 3.0, label="b"), a=1.0, b=1.0)
    assert (score.value, score.parts) == (5.0, {"a": 1.0, "b": 1.0})


TURNS = Score(value=3.0, turn_rewards=(1.0, 2.0))


def test_a_weight_scales_what_is_due_at_turns() -> None:
    """`b` is due at the end; what `c` gives for turns is added turn by turn."""
    components = Component("a", 0.5), Component("b", 2.0), Component("c", -1.0)
    score = total(*components, a=TURNS, b=1.0, c=Score(value=0.5, turn_rewards=(0.25, 0.0)))
    assert score.value == 0.5 * 3.0 + 2.0 - 0.5
    assert score.turn_rewards == (0.5 * 1.0 - 0.25, 0.5 * 2.0)
    scheduled = Component("a", WeightSchedule(start=1.0, end=0.0, steps=4))
    assert total(scheduled, step=3, a=TURNS).turn_rewards == (0.25, 0.5)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [(1.0, (1.0, 2.0)), (0.9, (0.0, 0.0)), (UNJUDGED, ())],
    ids=["open", "closed", "unjudged"],
)
def test_a_gate_holds_back_turns_as_well(gate: float | Score, expected: tuple[float, ...]) -> None:
    score = total(Component("a", gate="b"), Component("b", 0.0), a=TURNS, b=gate)
    assert score.turn_rewards == expected


def test_a_sample_without_a_score_has_nothing_due() -> None:
    score = total(Component("a"), Component("b", on_error="drop"), a=TURNS, b=BROKEN)
    assert (score.value, score.turn_rewards) == (None, ())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2), st.none() | st.floats(-2, 2)), min_size=1, max_size=5))
def test_the_sum_is_over_what_could_judge(terms: list[tuple[float, float | None]]) -> None:
    components = [Component(f"c{i}", weight) for i, (weight, _) in enumerate(terms)]
    score = total(*components, **{f"c{i}": Score(value=v) for i, (_, v) in enumerate(terms)})
    judged = [weight * value for weight, value in terms if value is not None]
    assert score.value == (pytest.approx(sum(judged)) if judged else None)
