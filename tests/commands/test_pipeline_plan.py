"""What is left to do of a pipeline: order, what is on record, what changed."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rlstack.commands.pipeline_plan import (
    DONE,
    STARTED,
    PlannedStage,
    StageAction,
    finish,
    plan,
    start,
)
from rlstack.errors import ConfigError

START, RESUME, SKIP = StageAction.START, StageAction.RESUME, StageAction.SKIP


def stage(run_dir: Path, name: str, *, resumable: bool = True, **values: object) -> PlannedStage:
    return PlannedStage(
        name=name,
        command="sft",
        run_dir=run_dir / name,
        configuration={"model": values, "ray_address": None, "tracking": {"console": True}},
        resumable=resumable,
    )


@pytest.fixture
def stages(tmp_path: Path) -> list[PlannedStage]:
    """b reads what a writes; c reads nothing of theirs."""
    return [
        stage(tmp_path, "a", path="m"),
        stage(tmp_path, "b", path=f"{tmp_path}/a/export"),
        stage(tmp_path, "c", path="n"),
    ]


def do(planned: PlannedStage) -> None:
    start(planned)
    finish(planned)


def checkpoint(planned: PlannedStage) -> None:
    (planned.run_dir / "checkpoints/step_000002").mkdir(parents=True)


def test_nothing_is_done_at_first_and_what_is_done_is_skipped(stages: list[PlannedStage]) -> None:
    assert plan(stages) == [START, START, START]
    do(stages[0])
    assert plan(stages) == [SKIP, START, START]
    do(stages[1])
    do(stages[2])
    assert plan(stages) == [SKIP, SKIP, SKIP]


def test_what_was_begun_resumes_from_a_checkpoint_or_starts_anew(
    stages: list[PlannedStage],
) -> None:
    first = stages[0]
    start(first)
    (first.run_dir / "metrics.jsonl").write_text("{}\n")
    assert plan(stages)[0] is START
    checkpoint(first)
    assert plan(stages)[0] is RESUME
    assert plan([replace(first, resumable=False)]) == [START]
    start(first)
    assert [file.name for file in first.run_dir.iterdir()] == [STARTED]


def test_what_the_first_round_has_sampled_is_kept(stages: list[PlannedStage]) -> None:
    first = stages[0]
    start(first)
    (first.run_dir / "rounds/.partial_round_001").mkdir(parents=True)
    assert plan(stages)[0] is START
    (first.run_dir / "rounds/round_001").mkdir()
    assert plan(stages)[0] is RESUME


def test_a_folder_that_no_stage_began_is_not_cleared(stages: list[PlannedStage]) -> None:
    stages[0].run_dir.mkdir()
    (stages[0].run_dir / "mine").touch()
    start(stages[0])
    assert (stages[0].run_dir / "mine").exists()


@pytest.mark.parametrize("state", ["is done", "was interrupted"])
def test_another_configuration_is_named_key_by_key(
    stages: list[PlannedStage], tmp_path: Path, state: str
) -> None:
    start(stages[0])
    checkpoint(stages[0])
    if state == "is done":
        finish(stages[0])
    changed = stage(tmp_path, "a", path="other", size=[1, 2])
    with pytest.raises(ConfigError) as caught:
        plan([changed, *stages[1:]])
    assert str(caught.value).splitlines() == [
        f"stage 'a' {state} with another configuration; remove {tmp_path}/a to do it anew, choose "
        "another run_dir, or take back the change:",
        "  model.path: m -> other",
        "  model.size: not set -> ['1', '2']",
    ]


def test_a_cluster_and_the_sinks_may_change(stages: list[PlannedStage]) -> None:
    do(stages[0])
    values = {**stages[0].configuration, "ray_address": "auto", "tracking": {"console": False}}
    assert plan([replace(stages[0], configuration=values)]) == [SKIP]


def test_what_was_made_from_a_stage_that_is_made_anew_is_refused(
    stages: list[PlannedStage],
) -> None:
    do(stages[1])
    with pytest.raises(ConfigError, match="'b' was made from what 'a' had written, and 'a' is not"):
        plan(stages)


def test_a_stage_that_reads_nothing_of_an_earlier_one_stays_done(
    stages: list[PlannedStage], tmp_path: Path
) -> None:
    do(stages[2])
    assert plan(stages) == [START, START, SKIP]
    prefix = stage(tmp_path, "d", path=f"{tmp_path}/ab/export")
    do(prefix)
    assert plan([stages[0], prefix]) == [START, SKIP]


def test_a_stage_is_not_done_before_it_says_so(stages: list[PlannedStage]) -> None:
    first = stages[0]
    start(first)
    assert yaml.safe_load((first.run_dir / STARTED).read_text()) == first.record
    assert not (first.run_dir / DONE).exists()
    finish(first)
    assert yaml.safe_load((first.run_dir / DONE).read_text()) == first.record
    assert not (first.run_dir / STARTED).exists()
