"""A run directory is used once; a run that failed before its first step does not count."""

from pathlib import Path

import pytest

from rlstack.commands.preflight import check_unused, preflight
from rlstack.config.load import parse
from rlstack.config.supervised import SFTConfig
from rlstack.errors import ConfigError
from tests.config.test_load import SOURCE, composed
from tests.tiny_model import write_tiny_model


def test_a_used_run_directory_is_refused(tmp_path: Path) -> None:
    check_unused(tmp_path, command="sft")
    (tmp_path / "metrics.jsonl").touch()
    check_unused(tmp_path, command="sft")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"run_dir: .* holds a run already; .* with rlstack sft"):
        check_unused(tmp_path, command="sft")


def test_a_resumed_run_has_used_its_directory_itself(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    model = f"model.path={tmp_path / 'model'}"
    values = composed("sft", model, f"data.train=[{SOURCE}]", f"run_dir={tmp_path}")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="continue it with rlstack sft resume="):
        preflight(parse(SFTConfig, values), command="sft", longest_row=8)
    resumed = parse(SFTConfig, values | {"resume": str(tmp_path)})
    assert preflight(resumed, command="sft", longest_row=8).pad_token_id is not None
