"""Inline SVG charts for the report: no script, no external file; colours are the page's CSS."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from statistics import fmean

WIDTH, HEIGHT = 460, 216
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 36
NUM_COLOURS = 8
MAX_POINTS = 300
"""A longer line is drawn as means of neighbouring points, so that the page stays small."""
SMOOTH_FROM = 15
"""A line of so many points is noise and trend: a moving average is drawn over it."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart; points are (x, value), finite, x a step for most charts.

    `colour` is 1 .. NUM_COLOURS.
    """

    name: str
    points: Sequence[Point]
    colour: int = 1
    markers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One span of the timeline, in seconds from the start of the step."""

    name: str
    start_s: float
    end_s: float
    within: str | None = None
    """Name of the span around it."""


def ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Round values that divide [low, high] into about `count` parts."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** floor(log10(raw))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = ceil(low / step - 1e-9)
    values = [(first + index) * step for index in range(count * 3)]
    return [value for value in values if value <= high + step * 1e-9]


def label(value: float) -> str:
    """A number short enough for an axis."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:.5g}"


def thin(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS points: means of neighbours."""
    size = ceil(len(points) / MAX_POINTS)
    runs = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(fmean(x for x, _ in run), fmean(y for _, y in run)) for run in runs]


def smooth(points: Sequence[Point]) -> list[Point]:
    """A centred moving average over about a tenth of the line."""
    half = max(len(points) // 20, 1)
    return [
        (x, fmean(y for _, y in points[max(index - half, 0) : index + half + 1]))
        for index, (x, _) in enumerate(points)
    ]


def exclusive_seconds(bars: Sequence[Bar], *, end_s: float) -> dict[str, float]:
    """Seconds of [0, end_s] by name, which add up to `end_s`.

    A span has what the spans within it leave of it. Where others overlap each gets an equal part;
    where there is none it is `other`.
    """
    times = {min(time_s, end_s) for bar in bars for time_s in (bar.start_s, bar.end_s)}
    seconds = dict.fromkeys((bar.name for bar in bars), 0.0) | {"other": 0.0}
    for start, end in pairwise(sorted({0.0, end_s} | times)):
        running = [bar for bar in bars if bar.start_s <= start and bar.end_s >= end]
        around = {bar.within for bar in running}
        names = [bar.name for bar in running if bar.name not in around] or ["other"]
        for name in names:
            seconds[name] += (end - start) / len(names)
    return seconds


def line_chart(series: Sequence[Series], *, unit_interval: bool = False, x: str = "step") -> str:
    """Lines over steps, with axes, gridlines and a point's value on hover.

    unit_interval: the vertical axis is 0 .. 1, so that small wiggles of a share look small.
    x: what is on the other axis.
    """
    lines = [(line, thin(line.points)) for line in series if line.points]
    if not lines:
        return ""
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    frame = _Frame(
        x_range=(min(xs), max(xs)), y_range=(0.0, 1.0) if unit_interval else _y_range(ys)
    )
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', *_axes(frame, x=x)]
    for line, points in lines:
        drawn = points
        # The dots, seen or not, stay on the values: pointing at one says what was measured.
        dot = f'class="dot c{line.colour}" r="{3.2 if line.markers or len(points) == 1 else 1.6}"'
        if len(points) >= SMOOTH_FROM and not line.markers:
            parts.append(_polyline(points, frame, classes=f"line faint c{line.colour}"))
            drawn, dot = smooth(points), 'class="hidden" r="4"'
        parts.append(_polyline(drawn, frame, classes=f"line c{line.colour}"))
        for point in points:
            across, up = frame.place(point)
            parts.append(
                f'<circle {dot} cx="{across:.1f}" cy="{up:.1f}">'
                f"<title>{escape(line.name)}: {x} {point[0]:.6g}, {point[1]:.5g}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def gantt(bars: Sequence[Bar], *, end_s: float, colours: dict[str, int]) -> str:
    """Spans of one step on a time axis [0, end_s], a row a name."""
    if not bars:
        return ""
    names = list(dict.fromkeys(bar.name for bar in bars))
    width, row, left = 960, 28, 110
    height = row * len(names) + 30

    def place(seconds: float) -> float:
        return left + min(seconds / end_s, 1.0) * (width - left - 20)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for value in ticks(0, end_s, count=8):
        x = place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 24}"/>')
        parts.append(f'<text class="axis mid" x="{x:.1f}" y="{height - 8}">{label(value)} s</text>')
    for index, name in enumerate(names):
        y = index * row + 5
        parts.append(f'<text class="axis end" x="{left - 10}" y="{y + 13}">{escape(name)}</text>')
        for bar in (b for b in bars if b.name == name):
            width_px = max(place(bar.end_s) - place(bar.start_s), 1.5)
            parts.append(
                f'<rect class="bar c{colours[name]}" x="{place(bar.start_s):.1f}" y="{y}" rx="3" '
                f'width="{width_px:.1f}" height="{row - 10}"><title>{escape(name)}: '
                f"{(bar.end_s - bar.start_s) * 1000:.0f} ms</title></rect>"
            )
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """From steps and values to places in the picture."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def place(self, point: Point) -> Point:
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        across = (point[0] - x_low) / ((x_high - x_low) or 1)
        up = (point[1] - y_low) / (y_high - y_low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )


def _axes(frame: _Frame, *, x: str) -> list[str]:
    x_low, y_low = frame.x_range[0], frame.y_range[0]
    end, middle = WIDTH - RIGHT, (LEFT + WIDTH - RIGHT) / 2
    parts: list[str] = []
    for value in ticks(*frame.y_range):
        y = frame.place((x_low, value))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="axis end" x="{LEFT - 7}" y="{y + 4:.1f}">{label(value)}</text>')
    for value in ticks(*frame.x_range):
        if x != "step" or value == round(value):  # there is no step 2.5
            across = frame.place((value, y_low))[0]
            parts.append(
                f'<text class="axis mid" x="{across:.1f}" y="{HEIGHT - 19}">{label(value)}</text>'
            )
    return [*parts, f'<text class="axis mid" x="{middle}" y="{HEIGHT - 3}">{x}</text>']


def _y_range(values: Sequence[float]) -> tuple[float, float]:
    """From 0 where that does not flatten the line."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low <= high / 2 else low - margin), high + margin


def _polyline(points: Sequence[Point], frame: _Frame, *, classes: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, points))
    return f'<polyline class="{classes}" points="{path}"/>'
