"""`rlstack report`: one self-contained HTML file about a run, read from its directory alone."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from html import escape
from importlib.resources import files
from math import isfinite
from pathlib import Path
from statistics import median

from rlstack.errors import DataError
from rlstack.run import durations, jsonl
from rlstack.run.charts import (
    NUM_COLOURS,
    Bar,
    Point,
    Series,
    exclusive_seconds,
    gantt,
    label,
    line_chart,
)
from rlstack.run.folders import write_file
from rlstack.run.jsonl import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One picture of the report; `metrics` are names, with `*` for any text."""

    title: str
    metrics: tuple[str, ...]
    unit_interval: bool = False
    at_least: int = 1
    """Fewer lines than this say nothing that another chart does not."""


CHARTS = (
    Chart(
        title="Held-out accuracy",
        metrics=("eval/pass@1", "eval/*/pass@1", "eval/maj@*"),
        unit_interval=True,
    ),
    Chart(title="Reward of training rollouts", metrics=("reward/mean",)),
    Chart(title="Reward by component", metrics=("reward/part/*",), at_least=2),
    Chart(title="Held-out reward by component", metrics=("eval/part/*",), at_least=2),
    Chart(
        title="Reward by component beside the KL to the reference (nats)",
        metrics=("reward/part/*", "policy/ref_kl"),
        at_least=3,
    ),
    Chart(title="Reward by data source", metrics=("reward/source/*",), at_least=2),
    Chart(title="Failures of rewards in a step, by component", metrics=("reward/errors/*",)),
    Chart(
        title="Rollouts that have a score (share)",
        metrics=("reward/judged_fraction",),
        unit_interval=True,
    ),
    Chart(
        title="Rollouts that filtration keeps (share)",
        metrics=("filtration/kept_fraction",),
        unit_interval=True,
    ),
    Chart(title="Response length (tokens)", metrics=("rollout/response_tokens",)),
    Chart(
        title="Truncated responses, groups without signal (share)",
        metrics=("rollout/truncated_fraction", "reward/groups_without_signal"),
        unit_interval=True,
    ),
    Chart(
        title="Turns and tool calls of an episode",
        metrics=("rollout/num_turns", "rollout/tool_calls", "rollout/tool_errors"),
    ),
    Chart(title="Entropy (nats)", metrics=("policy/entropy",)),
    Chart(title="KL of the updates (nats)", metrics=("policy/approx_kl",)),
    Chart(title="KL to the reference (nats)", metrics=("policy/ref_kl",)),
    Chart(
        title="Engine-trainer logprob difference, largest (nats)",
        metrics=("mismatch/logprob_difference_max",),
    ),
    Chart(title="Gradient norm", metrics=("policy/grad_norm",)),
    Chart(title="Clipped tokens (share)", metrics=("policy/clip_fraction_*",)),
    Chart(title="Supervised loss (nats per token)", metrics=("sft/loss", "eval/loss")),
    Chart(
        title="Accuracy on pairs",
        metrics=("reward_model/accuracy", "eval/accuracy", "eval/accuracy/*"),
        unit_interval=True,
    ),
    Chart(title="Loss on pairs (nats)", metrics=("reward_model/loss", "eval/log_loss")),
    Chart(
        title="Calibration on held-out pairs", metrics=("eval/calibration_error", "eval/brier_loss")
    ),
    Chart(title="Scores: mean, spread", metrics=("eval/score_mean", "eval/score_std")),
    Chart(title="Memory (GiB)", metrics=("memory/*_gib",)),
    Chart(title="Seconds per step", metrics=("time/step_s",)),
)


TILES = (
    ("eval/pass@1", "held-out accuracy"),
    ("eval/accuracy", "accuracy on held-out pairs"),
    ("reward/mean", "reward"),
)
"""Metrics that are told in figures, and what they are called."""


def write_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html; what the run did not record is left out.

    Raises:
        DataError: if the folder is not a run directory, or one of its files is damaged.
    """
    metrics_file = run_dir / "metrics.jsonl"
    if not metrics_file.is_file():
        raise DataError(f"{run_dir} is not a run directory: it has no metrics.jsonl")
    rows = jsonl.read(metrics_file)
    name = escape(run_dir.resolve().name)
    body = "".join(
        [
            f"<h1>rlstack run: {name}</h1>",
            _dates(rows),
            _tiles(rows),
            _charts(rows),
            _held_out(run_dir / "held_out.json"),
            _timeline(jsonl.read(run_dir / "timeline.jsonl"), rows),
            _rollouts(run_dir / "rollouts"),
            _config(run_dir / "config.yaml"),
        ]
    )
    style = files("rlstack.run").joinpath("report.css").read_text(encoding="utf-8")
    path = run_dir / "report.html"
    write_file(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name} - rlstack</title><style>{style}</style></head><body>{body}</body></html>",
    )
    return path


def _points(rows: Sequence[Record], name: str) -> list[Point]:
    """(step, value) wherever `name` was logged; a value that is not finite cannot be drawn."""
    return [(row["step"], row[name]) for row in rows if name in row and isfinite(row[name])]


def _dates(rows: Sequence[Record]) -> str:
    if not rows:
        return '<p class="soft">Nothing was measured yet.</p>'
    first, last = (datetime.fromtimestamp(rows[i]["time"], UTC) for i in (0, -1))
    return f'<p class="soft">{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC</p>'


def _tiles(rows: Sequence[Record]) -> str:
    tiles: list[tuple[str, str]] = []
    for name, title in TILES:
        points = _points(rows, name)
        if points:
            tiles.append(
                (f"{points[0][1]:.2f} &rarr; {points[-1][1]:.2f}", f"{title}, first to last")
            )
            step, value = max(points, key=lambda point: point[1])
            tiles.append((f"{value:.2f}", f"best {title}, step {step}"))
    seconds = [value for _, value in _points(rows, "time/step_s")]
    if seconds:
        tiles.append((str(rows[-1]["step"]), "steps"))
        tiles.append((durations.readable(median(seconds)), "median step"))
    if len(rows) > 1:
        wall_s = rows[-1]["time"] - rows[0]["time"]
        tiles.append((durations.readable(wall_s), "wall time, first to last metric"))
    tokens = _points(rows, "rollout/num_tokens")
    if tokens:
        total = sum(value for _, value in tokens)
        tiles.append((label(float(f"{total:.4g}")), "tokens generated for training"))
    cells = "".join(f'<div class="tile"><b>{v}</b><span>{t}</span></div>' for v, t in tiles)
    return f'<div class="tiles">{cells}</div>' if tiles else ""


def _charts(rows: Sequence[Record]) -> str:
    logged = list(dict.fromkeys(name for row in rows for name in row))
    cards: list[str] = []
    for chart in CHARTS:
        wanted = [n for pattern in chart.metrics for n in logged if fnmatchcase(n, pattern)]
        points = {name: _points(rows, name) for name in dict.fromkeys(wanted)}
        drawn = {name: found for name, found in points.items() if found}
        if len(drawn) < chart.at_least:
            continue
        colours = _colours(drawn)
        series = [
            Series(name=n, points=found, colour=colours[n], markers=n.startswith("eval/"))
            for n, found in drawn.items()
        ]
        legend = _legend({name: escape(name) for name in drawn}, colours) if len(drawn) > 1 else ""
        picture = line_chart(series, unit_interval=chart.unit_interval)
        cards.append(f'<div class="card"><h3>{chart.title}</h3>{picture}{legend}</div>')
    if not cards:
        return ""
    text = "".join(cards)
    note = '<p class="soft">Faint lines are the values, bold ones their moving average.</p>'
    note = note if "line faint" in text else ""
    return f'<h2>Curves over steps</h2>{note}<div class="charts">{text}</div>'


def _held_out(file: Path) -> str:
    """A reward model's reliability diagram and its scores by length, of the latest evaluation."""
    if not file.is_file():
        return ""
    found = json.loads(file.read_text(encoding="utf-8"))
    drawn = {
        name: [(part["position"], part["value"]) for part in parts] for name, parts in found.items()
    }
    ideal = Series(name="calibrated", points=[(0.5, 0.5), (1.0, 1.0)], colour=2)
    model = Series(name="model", points=drawn["reliability"], markers=True)
    names, colours = {"model": "model", "calibrated": "calibrated"}, {"model": 1, "calibrated": 2}
    lengths = Series(name="score", points=drawn["score_by_length"], markers=True)
    diagram = line_chart([ideal, model], unit_interval=True, x="confidence")
    cards = (
        f"<h3>Accuracy by confidence</h3>{diagram}{_legend(names, colours)}",
        f"<h3>Mean score by response length</h3>{line_chart([lengths], x='tokens')}",
    )
    text = "".join(f'<div class="card">{card}</div>' for card in cards)
    return f'<h2>Latest held-out pairs</h2><div class="charts">{text}</div>'


def _timeline(spans: Sequence[Record], rows: Sequence[Record]) -> str:
    """The step of median length, drawn; and each part's share of all steps."""
    step_s = {row["step"]: row["time/step_s"] for row in rows if "time/step_s" in row}
    bars: dict[int, list[Bar]] = defaultdict(list)
    for span in spans:
        # What comes between steps, such as an evaluation, belongs to none of them.
        if span["start_s"] < step_s.get(span["step"], 0.0):
            bar = Bar(
                name=span["name"],
                start_s=span["start_s"],
                end_s=span["end_s"],
                within=span.get("within"),
            )
            bars[span["step"]].append(bar)
    if not bars:
        return ""
    totals: dict[str, float] = defaultdict(float)
    for step, members in bars.items():
        for name, seconds in exclusive_seconds(members, end_s=step_s[step]).items():
            totals[name] += seconds
    totals["other"] = totals.pop("other")  # last
    colours = _colours(totals) | {"other": 0}
    by_length = sorted(bars, key=lambda step: step_s[step])
    typical = by_length[len(by_length) // 2]
    in_order = sorted(bars[typical], key=lambda bar: bar.start_s)
    percent = {name: 100 * value / sum(totals.values()) for name, value in totals.items()}
    share = "".join(
        f'<i class="c{colours[name]}" style="width:{value:.2f}%"></i>'
        for name, value in percent.items()
    )
    keys = {name: f"{escape(name)} {value:.1f}%" for name, value in percent.items()}
    return (
        '<h2>Where the time of a step goes</h2><div class="card">'
        f"<h3>Step {typical}, of median length: {durations.readable(step_s[typical])}</h3>"
        f"{gantt(in_order, end_s=step_s[typical], colours=colours)}"
        f'<h3>Share of all {len(bars)} steps</h3><div class="share">{share}</div>'
        f"{_legend(keys, colours)}</div>"
    )


def _colours(names: Mapping[str, object]) -> dict[str, int]:
    return {name: index % NUM_COLOURS + 1 for index, name in enumerate(names)}


def _legend(texts: Mapping[str, str], colours: Mapping[str, int]) -> str:
    keys = (
        f'<span><i class="key c{colours[name]}"></i>{text}</span>' for name, text in texts.items()
    )
    return f'<p class="soft keys">{"".join(keys)}</p>'


def _rollouts(folder: Path) -> str:
    """The best and the worst rollout of the first, middle and last step, or evaluation."""
    found = sorted(folder.glob("step_*.jsonl")) or sorted(folder.glob("eval_*.jsonl"))
    if not found:
        return ""
    cards: list[str] = []
    for file in dict.fromkeys((found[0], found[len(found) // 2], found[-1])):
        judged = [r for r in jsonl.read(file) if r["reward"] is not None and isfinite(r["reward"])]
        if not judged:
            continue
        best = max(judged, key=lambda record: record["reward"])
        worst = min(judged, key=lambda record: record["reward"])
        cards.append(_rollout_card(best, "good"))
        if worst["reward"] < best["reward"]:
            cards.append(_rollout_card(worst, "bad"))
    return f"<h2>Sample rollouts</h2>{''.join(cards)}" if cards else ""


def _rollout_card(record: Record, kind: str) -> str:
    parts = [f"{name} {value:.3g}" for name, value in record["parts"].items()]
    facts = [
        f"{record['response_tokens']} tokens",
        f"ended by {record['finish_reason']}",
        *parts,
        record["prompt_id"],
    ]
    errors = "".join(f'<p class="soft warn">{escape(text)}</p>' for text in record["errors"])
    answer = "none" if record["answer"] is None else record["answer"]
    return (
        f'<div class="card rollout {kind}">'
        f"<h3>Step {record['step']}, reward {record['reward']:.3g}</h3>"
        f'<p class="soft">{escape(" · ".join(facts))}</p>{errors}'
        f"<dl><dt>prompt</dt><dd><pre>{escape(record['prompt'])}</pre></dd>"
        f"{_response(record)}"
        f"<dt>answer</dt><dd><pre>{escape(answer)}</pre></dd></dl></div>"
    )


def _response(record: Record) -> str:
    """What the policy wrote; of an episode every turn, with the environment's answers marked."""
    # Runs from before there were environments have no turns.
    turns = record.get("turns") or []
    if not turns:
        return f"<dt>response</dt><dd><pre>{escape(record['response'])}</pre></dd>"
    entries: list[str] = []
    for number, turn in enumerate(turns, 1):
        entries.append(f"<dt>turn {number}</dt><dd><pre>{escape(turn['action'])}</pre></dd>")
        answer = turn["answer"]
        if answer is None:
            continue
        earned = f'<p class="soft">reward {answer["reward"]:.3g}</p>' if answer["reward"] else ""
        said = escape(answer["observation"])
        role = "tool" if answer["role"] == "tool" else "environment"
        if said or earned:
            entries.append(f'<dt>{role}</dt><dd><pre class="tool">{said}</pre>{earned}</dd>')
    return "".join(entries)


def _config(file: Path) -> str:
    if not file.is_file():
        return ""
    text = escape(file.read_text(encoding="utf-8"))
    return (
        f"<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{text}</pre></details>"
    )
