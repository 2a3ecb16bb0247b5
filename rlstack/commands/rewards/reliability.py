"""How well a reward tells true scores apart, by rank and by filtration policy; what to use then.

Source: PF-PPO (arXiv 2409.06957). A reward model may be right about its best and worst responses
and blind in between; a policy that trains on ranks it is right about is worth its lost samples.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from rlstack.errors import DataError

DEFAULT_BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """Responses with the reward that training would use and the true score; NaN: unknown."""

    groups: tuple[str, ...]
    rewards: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reliability:
    """R^2 of the straight line from reward to true score; NaN where it is undefined."""

    num_rows: int
    num_groups: int
    by_rank: tuple[float, ...]
    """Over the responses of rank 0 (highest reward of their group), 1, ..."""
    by_policy: Mapping[str, float]
    recommended: str
    """The policy with the highest R^2, the first of them; "none": train on all."""


def reliability(calibration: Calibration, *, num_bins: int = DEFAULT_BINS) -> Reliability:
    """R^2 of each rank and of each PF-PPO policy; see `reward_reliability.r_squared` for the bins.

    Equal rewards of a group share their ranks equally.

    Raises:
        DataError: if R^2 is undefined for every policy: too few different rewards, or all scores
            equal.
    """
    import torch

    from rlstack.algorithms.filtration import Strategy
    from rlstack.algorithms.reward_reliability import most_reliable_strategy, r_squared

    _, group_ids = np.unique(np.array(calibration.groups), return_inverse=True)
    rewards = torch.tensor(calibration.rewards, dtype=torch.float64)
    scores = torch.tensor(calibration.scores, dtype=torch.float64)
    weights = torch.from_numpy(_rank_weights(np.array(calibration.rewards), group_ids))
    names: dict[Strategy, str] = {
        "all": "none",
        "best": "best",
        "best_random": "best_random",
        "best_worst": "best_worst",
    }
    try:
        choice = most_reliable_strategy(
            rewards,
            scores,
            torch.from_numpy(group_ids),
            strategies=list(names),
            num_bins=num_bins,
        )
    except ValueError as error:
        raise DataError(f"no recommendation: {error}. Give more rows or fewer bins.") from error
    return Reliability(
        num_rows=len(calibration.rewards),
        num_groups=len(set(calibration.groups)),
        by_rank=tuple(
            r_squared(rewards[held], scores[held], column[held], num_bins=num_bins)
            for column in weights.T
            for held in [column > 0]  # the bins are those of the rank's own rewards
        ),
        by_policy={names[strategy]: value for strategy, value in choice.r_squared.items()},
        recommended=names[choice.best],
    )


def read_calibration(path: Path) -> Calibration:
    """JSON lines with `group` (or else `id`), `reward` and `score`; null: could not be judged.

    Raises:
        DataError: naming file and line, if a row is wrong.
        OSError: if the file cannot be read.
    """
    groups: list[str] = []
    values: dict[str, list[float]] = {"reward": [], "score": []}
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict) or ("group" not in row and "id" not in row):
                raise DataError(f"{path}:{number}: expected an object with group, reward and score")
            groups.append(str(row.get("group", row.get("id"))))
            for key, column in values.items():
                column.append(_number(row, key, place=f"{path}:{number}"))
    return Calibration(tuple(groups), tuple(values["reward"]), tuple(values["score"]))


def format_reliability(found: Reliability) -> str:
    """The report as text."""
    lines = [f"{found.num_rows} responses in {found.num_groups} groups", "", "R^2 by rank"]
    lines += [f"  {rank:>4}  {_shown(value)}" for rank, value in enumerate(found.by_rank)]
    lines += ["", "R^2 by policy"]
    lines += [f"  {name:<12} {_shown(value)}" for name, value in found.by_policy.items()]
    return "\n".join([*lines, "", f"recommended: {found.recommended}"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rlstack rewards reliability`."""
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines: group, reward, score")
    parser.add_argument("--bins", type=int, default=DEFAULT_BINS, help="bins of reward")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Print the report.

    Raises:
        DataError, OSError: if the rows are wrong, missing or too few.
    """
    found = reliability(read_calibration(arguments.rows), num_bins=arguments.bins)
    if not arguments.json:
        print(format_reliability(found))
        return
    plain = asdict(found)
    plain["by_rank"] = [_or_none(value) for value in found.by_rank]
    plain["by_policy"] = {name: _or_none(value) for name, value in found.by_policy.items()}
    print(json.dumps(plain))


def _rank_weights(rewards: np.ndarray[Any, Any], groups: np.ndarray[Any, Any]) -> Any:
    """float64 [B, largest group]: how much of each rank a row holds."""
    judged_groups: Sequence[Any] = [
        np.flatnonzero((groups == group) & ~np.isnan(rewards)) for group in np.unique(groups)
    ]
    weights = np.zeros((len(rewards), max((len(rows) for rows in judged_groups), default=0)))
    for rows in judged_groups:
        first = 0
        for value in np.unique(rewards[rows])[::-1]:
            equal = rows[rewards[rows] == value]
            weights[equal, first : first + len(equal)] = 1 / len(equal)
            first += len(equal)
    return weights


def _number(row: Mapping[str, Any], key: str, *, place: str) -> float:
    value = row.get(key, "missing")
    if value is None:
        return nan
    if isinstance(value, int | float) and isfinite(value):
        return float(value)
    raise DataError(f"{place}: {key} is {value!r}; expected a finite number or null")


def _shown(value: float) -> str:
    return "undefined" if isnan(value) else f"{value:.3f}"


def _or_none(value: float) -> float | None:
    return None if isnan(value) else value
