"""Scales and shares against hand-computed values; lines stay inside the picture and small."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlstack.run.charts import (
    HEIGHT,
    MAX_POINTS,
    SMOOTH_FROM,
    WIDTH,
    Bar,
    Series,
    exclusive_seconds,
    label,
    line_chart,
    smooth,
    thin,
    ticks,
)

RANGES = [(0, 1), (-3, 7), (0.001, 0.0013), (5, 5), (0, 1e6), (1e5, 2e5), (99_000, 101_000)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_ticks_are_inside_and_few(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 1 <= len(values) <= 9
    assert all(low - 1e-9 <= value <= high * 1.001 + 1e-9 for value in values)
    assert len({label(value) for value in values}) == len(values)


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(3, 41) == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.1 + 0.2, "0.3"), (2e-5, "2e-05"), (9500, "9500"), (12500, "12.5k"), (3e6, "3M")],
)
def test_labels_are_short(value: float, text: str) -> None:
    assert label(value) == text


@pytest.mark.parametrize("length", [0, 1, MAX_POINTS, MAX_POINTS + 1, 10_000])
def test_thinning_keeps_lines_short_and_means(length: int) -> None:
    points = [(float(step), 2.0 * step) for step in range(length)]
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS
    assert all(y == pytest.approx(2 * x) for x, y in thinned)
    if length <= MAX_POINTS:
        assert thinned == points


def test_smoothing_averages_neighbours() -> None:
    assert smooth([(0, 0.0), (1, 3.0), (2, 6.0), (3, 0.0)]) == [(0, 1.5), (1, 3), (2, 3), (3, 3)]


FINITE = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(values=st.lists(FINITE, min_size=1, max_size=40), markers=st.booleans())
def test_every_point_lies_inside_the_picture(values: list[float], markers: bool) -> None:
    series = Series(name="a<b", points=list(enumerate(values)), markers=markers)
    picture = line_chart([series])
    places = re.findall(r'cx="(.*?)" cy="(.*?)"', picture)
    assert len(places) == len(values)
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in places)
    assert "a<b" not in picture


def test_a_smoothed_line_still_says_what_was_measured() -> None:
    values = [float(step % 2) for step in range(SMOOTH_FROM)]
    picture = line_chart([Series(name="x", points=list(enumerate(values)))])
    assert picture.count("<polyline") == 2
    said = re.findall(r"<title>x: step (\d+), (.*?)</title>", picture)
    assert [(int(step), float(value)) for step, value in said] == list(enumerate(values))


def test_a_chart_of_nothing_is_nothing() -> None:
    assert line_chart([Series(name="x", points=[])]) == ""


def test_overlapping_seconds_are_shared_evenly() -> None:
    bars = [
        Bar(name="policy", start_s=1.0, end_s=5.0),
        Bar(name="reference", start_s=2.0, end_s=4.0),
        Bar(name="policy", start_s=6.0, end_s=20.0),  # goes on after the step
    ]
    assert exclusive_seconds(bars, end_s=8.0) == {"policy": 5.0, "reference": 1.0, "other": 2.0}


def test_a_span_has_what_the_spans_within_it_leave() -> None:
    bars = [
        Bar(name="update", start_s=0.0, end_s=10.0),
        Bar(name="policy", start_s=1.0, end_s=5.0, within="update"),
        Bar(name="critic", start_s=3.0, end_s=9.0, within="update"),
        Bar(name="scorer", start_s=9.0, end_s=10.0),
    ]
    expected = {"update": 1.5, "policy": 3.0, "critic": 5.0, "scorer": 0.5, "other": 2.0}
    assert exclusive_seconds(bars, end_s=12.0) == expected


SECONDS = st.floats(0, 100)
BARS = st.lists(
    st.builds(
        lambda name, start, length, within: Bar(
            name=name, start_s=start, end_s=start + length, within=within
        ),
        st.sampled_from("abc"),
        SECONDS,
        SECONDS,
        st.sampled_from(["d", None]),
    )
)


@given(bars=BARS, end_s=st.floats(0.1, 150))
def test_shares_always_add_up_to_the_step(bars: list[Bar], end_s: float) -> None:
    seconds = exclusive_seconds(bars, end_s=end_s)
    assert sum(seconds.values()) == pytest.approx(end_s)
    assert min(seconds.values()) >= 0
