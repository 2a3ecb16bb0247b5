"""Calibration data of which the answer is known."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from rlstack.commands.rewards.reliability import (
    Calibration,
    add_arguments,
    read_calibration,
    reliability,
    run,
)
from rlstack.errors import DataError


def calibration(*, blind_between: bool) -> Calibration:
    """40 groups of 6: rewards are true scores, or say nothing of those between best and worst."""
    random = np.random.default_rng(0)
    groups, rewards, scores = [], [], []
    for group in range(40):
        given = np.sort(random.uniform(0.2, 0.8, 6))
        given[0], given[-1] = random.uniform(0, 0.2), random.uniform(0.8, 1)
        true = given.copy()
        if blind_between:
            true[1:-1] = random.choice([0.0, 1.0], 4)
        groups += [f"g{group}"] * 6
        rewards += given.tolist()
        scores += true.tolist()
    return Calibration(tuple(groups), tuple(rewards), tuple(scores))


def test_a_perfect_reward_needs_no_filter() -> None:
    found = reliability(calibration(blind_between=False))
    assert found.recommended == "none"
    assert found.by_policy["none"] == pytest.approx(1.0)
    assert found.by_rank == pytest.approx([1.0] * 6)


def test_a_reward_that_is_blind_between_the_ends_is_filtered() -> None:
    found = reliability(calibration(blind_between=True))
    assert found.recommended in ("best", "best_worst")
    assert min(found.by_rank[0], found.by_rank[5]) > 0.99
    assert max(found.by_rank[1:5]) < 0.7


def test_ties_share_their_ranks() -> None:
    tied = Calibration(("a",) * 4, (1.0, 1.0, 0.0, 0.5), (1.0, 0.0, 0.0, 0.2))
    found = reliability(tied, num_bins=4)
    assert len(found.by_rank) == 4
    assert all(np.isnan(found.by_rank))  # one group: one point per rank, no line


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_the_command_prints_text_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = calibration(blind_between=False)
    rows = zip(data.groups, data.rewards, data.scores, strict=True)
    path = write(
        tmp_path / "rows.jsonl",
        *({"id": i, "group": g, "reward": r, "score": s} for i, (g, r, s) in enumerate(rows)),
        {"group": "g0", "reward": None, "score": 1},
    )
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args(["--rows", str(path)]))
    text = capsys.readouterr().out
    assert "241 responses in 40 groups" in text
    assert "recommended: none" in text
    run(parser.parse_args(["--rows", str(path), "--json"]))
    printed = json.loads(capsys.readouterr().out)
    assert printed["recommended"] == "none"
    assert len(printed["by_rank"]) == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"group": "a", "reward": "high", "score": 1}, ":2: reward is 'high'"),
        ({"group": "a", "reward": 1}, ":2: score is 'missing'"),
        ({"reward": 1, "score": 1}, ":2: expected an object with group"),
        ([1], ":2: expected an object"),
    ],
)
def test_rows_that_are_wrong(tmp_path: Path, row: object, message: str) -> None:
    good = {"group": "a", "reward": 1, "score": 1}
    with pytest.raises(DataError, match=message):
        read_calibration(write(tmp_path / "rows.jsonl", good, row))


def test_too_few_rows_give_no_recommendation(tmp_path: Path) -> None:
    good = {"group": "a", "reward": 1, "score": 1}
    with pytest.raises(DataError, match="no recommendation"):
        reliability(read_calibration(write(tmp_path / "rows.jsonl", good)))
