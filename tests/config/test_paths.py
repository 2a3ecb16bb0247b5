"""Paths are absolute once a configuration is read: elsewhere on a cluster they mean the same."""

from pathlib import Path

import pytest

from rlstack.commands.composing import composed_values
from rlstack.config.load import dump, parse
from rlstack.config.pipeline import PipelineConfig, register_stage_references
from rlstack.config.run import RLConfig
from tests.config.test_load import rl_values


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command is started in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_ranks_and_engines_are_told_is_absolute(here: Path) -> None:
    for name in ("policy", "scorer"):
        (here / name).mkdir()
    config = parse(
        RLConfig,
        rl_values(
            "run_dir=runs/../mine",
            "resume=mine",
            "model.path=policy",
            "algorithm=ppo",
            "critic.path=./scorer",
            "algorithm.plugins=[loss.py, package.module]",
            "reward=model",
            "reward.model.checkpoints=[scorer, team/scorer]",
            "reward.plugins=[../judge.py]",
        ),
    )
    assert config.run_dir == config.resume == f"{here}/mine"
    assert config.model.path == f"{here}/policy"
    assert config.critic is not None
    assert config.critic.path == f"{here}/scorer"
    assert config.algorithm.plugins == (f"{here}/loss.py", "package.module")
    assert config.reward.model is not None
    assert config.reward.model.checkpoints == (f"{here}/scorer", "team/scorer")
    assert config.reward.plugins == (f"{here.parent}/judge.py",)
    assert [source.path for source in config.data.train if source.type == "file"] == [
        f"{here}/rows.jsonl"
    ]
    assert f"run_dir: {here}/mine" in dump(config)


def test_a_hub_name_stays_one() -> None:
    config = parse(RLConfig, rl_values("model.path=Qwen/Qwen2.5-0.5B"))
    assert config.model.path == "Qwen/Qwen2.5-0.5B"


def test_what_interpolates_the_run_directory_is_absolute_before_it_is_there(here: Path) -> None:
    register_stage_references()
    made = "arguments: [make.py, '${run_dir}/data', '${stage:a}']"
    stages = f"[{{name: a, command: sft, arguments: []}}, {{name: b, command: python, {made}}}]"
    values = composed_values("pipeline", ["run_dir=mine", f"stages={stages}"])
    assert parse(PipelineConfig, values).stages[1].arguments == (
        "make.py",
        f"{here}/mine/data",
        f"{here}/mine/a/export",
    )
