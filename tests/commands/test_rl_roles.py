"""A teacher is another model in the reference's place; it must read the policy's tokens."""

import json
from pathlib import Path

import pytest

from rlstack.commands.rl_roles import check_teacher, run_spec
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.errors import ConfigError
from tests.config.test_load import rl_values
from tests.tiny_model import write_tiny_model


def distilling(policy: Path, teacher: Path, *overrides: str) -> RLConfig:
    paths = [f"model.path={policy}", f"algorithm.advantage.teacher={teacher}"]
    return parse(RLConfig, rl_values("algorithm=distillation", *paths, *overrides))


def test_the_teacher_stands_in_the_references_place(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "policy")
    write_tiny_model(tmp_path / "teacher", seed=1)
    config = distilling(tmp_path / "policy", tmp_path / "teacher", "reference.zero_stage=3")
    check_teacher(config)
    reference = run_spec(config).reference
    assert reference is not None
    assert reference.model.path == str(tmp_path / "teacher")
    assert reference.config.zero_stage == 3
    assert run_spec(config).model.path == str(tmp_path / "policy")


def test_a_teacher_that_cannot_judge_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "policy")
    write_tiny_model(tmp_path / "teacher")
    file = tmp_path / "teacher" / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"algorithm\.advantage\.teacher: the tokenizer of"):
        check_teacher(distilling(tmp_path / "policy", tmp_path / "teacher"))
    with pytest.raises(ConfigError, match=r"algorithm\.advantage\.teacher: .*nowhere' is neither"):
        check_teacher(distilling(tmp_path / "policy", tmp_path / "nowhere"))
