"""Pipelines: their stages are composed and checked first, then run in order, and done once."""

from pathlib import Path
from typing import Any

import pytest

from rlstack.commands import pipeline
from rlstack.config.load import parse
from rlstack.config.pipeline import PipelineConfig
from rlstack.config.resume import resumed_pipeline
from rlstack.errors import ConfigError, WorkerError
from rlstack.run.progress import Summary
from tests.config.test_load import SOURCE, composed

SFT = {
    "name": "warm",
    "command": "sft",
    "arguments": ["model.path=m", f"data.train=[{SOURCE}]", "total_steps=3"],
}
EVAL = {
    "name": "test",
    "command": "eval",
    "arguments": ["model.path=${stage:warm}", f"data.eval=[{SOURCE}]"],
}


class Runner:
    """Records what it is asked to run; `stop_at` names a stage that is interrupted there."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.stop_at = stop_at

    def __call__(self, command: str, config: Any) -> Summary:
        self.calls.append((command, config))
        run_dir = Path(config.run_dir)
        if command == "sft":
            (run_dir / "checkpoints/step_000002").mkdir(parents=True, exist_ok=True)
        return Summary(stopped_early=run_dir.name == self.stop_at)

    @property
    def commands(self) -> list[str]:
        return [command for command, _ in self.calls]


def pipeline_config(tmp_path: Path, *stages: dict[str, Any], **values: Any) -> PipelineConfig:
    return parse(PipelineConfig, pipeline_values(tmp_path, *stages, **values))


def pipeline_values(tmp_path: Path, *stages: dict[str, Any], **values: Any) -> dict[str, Any]:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key}: {text(inner)}" for key, inner in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return f'"{value}"' if isinstance(value, str) else str(value)

    overrides = [f"{key}={text(value)}" for key, value in values.items()]
    return composed(
        "pipeline", f"stages={text(list(stages))}", *overrides, f"run_dir={tmp_path}/run"
    )


def run(config: PipelineConfig, runner: Runner) -> bool:
    """Whether the pipeline came to its end."""
    return not pipeline.run(config, run_command=runner).stopped_early


def test_stages_run_in_order_on_what_earlier_ones_wrote_and_only_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, runner = pipeline_config(tmp_path, SFT, EVAL, seed=7), Runner()
    assert run(config, runner)
    assert runner.commands == ["sft", "eval"]
    warm, test = (stage for _, stage in runner.calls)
    assert (warm.run_dir, warm.seed, warm.total_steps) == (f"{tmp_path}/run/warm", 7, 3)
    assert test.model.path == f"{tmp_path}/run/warm/export"
    assert run(config, runner)
    assert len(runner.calls) == 2
    assert "pipeline 2/2: test (eval): done already" in capsys.readouterr().out


def test_an_interrupted_pipeline_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pipeline_config(tmp_path, SFT, EVAL)
    assert not run(config, Runner(stop_at="warm"))
    run_dir = tmp_path / "run"
    assert f"continue with rlstack pipeline resume={run_dir}" in capsys.readouterr().out
    runner = Runner()
    assert run(parse(PipelineConfig, resumed_pipeline(run_dir, [])), runner)
    assert runner.commands == ["sft", "eval"]
    assert runner.calls[0][1].resume == str(run_dir / "warm")


def test_further_arguments_come_last(tmp_path: Path) -> None:
    runner = Runner()
    run(pipeline_config(tmp_path, SFT, more={"warm": ["total_steps=9"]}), runner)
    assert runner.calls[0][1].total_steps == 9


def test_every_problem_of_every_stage_is_told_before_one_starts(tmp_path: Path) -> None:
    wrong = [
        {**SFT, "arguments": ["model.path=m", "total_step=3"]},
        {**EVAL, "name": "group", "arguments": ["reward=nothing"]},
        {"name": "what", "command": "train", "arguments": []},
        {"name": "merged", "command": "merge", "arguments": ["a", "b", "--method", "ties"]},
        {"name": "program", "command": "python", "arguments": []},
    ]
    runner = Runner()
    with pytest.raises(ConfigError) as caught:
        run(pipeline_config(tmp_path, *wrong), runner)
    message = str(caught.value)
    for expected in (
        "stage 'warm': 2 problems in the configuration:",
        "data.train: is empty",
        "total_step: unknown key; did you mean total_steps?",
        "stage 'group': ",
        "reward/nothing",
        "stage 'what': unknown command 'train'; one of rl, sft",
        "stage 'merged': merge: ties needs --base",
        "stage 'program': nothing to run",
    ):
        assert expected in message
    assert runner.calls == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stages", "more", "message"),
    [
        ((EVAL, SFT), {}, "'warm' is no earlier stage; those are: none"),
        ((SFT,), {"warm": ["model.path=${stage:warm}"]}, "'warm' is no earlier stage"),
    ],
)
def test_a_reference_to_what_is_not_there_yet_is_named(
    tmp_path: Path, stages: tuple[dict[str, Any], ...], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        pipeline_config(tmp_path, *stages, **({"more": more} if more else {}))


@pytest.mark.parametrize(
    ("stages", "more", "message"),
    [
        ((SFT, SFT), None, "2 stages are called 'warm'"),
        (({**SFT, "name": "../up"},), None, "'../up' is no name for a folder"),
        (({**SFT, "arguments": ["run_dir=x"]},), None, "'warm' must not set run_dir"),
        ((SFT,), {"warn": ["a=1"]}, "more: there is no stage 'warn'; those are warm"),
        ((), None, "stages: got .*; expected at least 1"),
    ],
)
def test_a_pipeline_that_cannot_be_is_explained(
    tmp_path: Path, stages: tuple[dict[str, Any], ...], more: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline_config(tmp_path, *stages, **({"more": more} if more else {}))


def test_a_program_runs_and_its_failure_ends_the_pipeline(tmp_path: Path) -> None:
    file = tmp_path / "made"
    program = {
        "name": "p",
        "command": "python",
        "arguments": ["-c", f"open('{file}', 'a').write('x')"],
    }
    config = pipeline_config(tmp_path, program)
    assert run(config, Runner())
    assert run(config, Runner())
    assert file.read_text() == "x"
    broken = {"name": "q", "command": "python", "arguments": ["-c", "raise SystemExit(3)"]}
    with pytest.raises(
        WorkerError, match="stage 'q': python -c raise SystemExit\\(3\\) ended with 3"
    ):
        run(pipeline_config(tmp_path, program, broken), Runner())


def test_resuming_needs_a_pipeline_that_is_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run directory of a pipeline"):
        resumed_pipeline(tmp_path, [])
    run(pipeline_config(tmp_path, SFT), Runner())
    with pytest.raises(ConfigError, match="leave out seed=1"):
        resumed_pipeline(tmp_path / "run", ["seed=1"])
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="this pipeline was started for"):
        resumed_pipeline(tmp_path / "moved", [])
