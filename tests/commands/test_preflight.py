"""A run directory is used once; a run that failed before its first step does not count."""

from pathlib import Path
from typing import Any

import pytest
from ray._private.ray_constants import DEFAULT_RUNTIME_ENV_DIR_NAME
from ray._private.runtime_env.working_dir import WorkingDirPlugin

from rlstack.commands import pipeline
from rlstack.commands.preflight import check_unused, preflight
from rlstack.config.load import parse
from rlstack.config.pipeline import PipelineConfig
from rlstack.config.supervised import SFTConfig
from rlstack.errors import ConfigError
from rlstack.run.folders import check_lasting
from tests.config.test_load import SOURCE, composed
from tests.tiny_model import write_tiny_model


def test_a_used_run_directory_is_refused(tmp_path: Path) -> None:
    check_unused(tmp_path, command="sft")
    (tmp_path / "metrics.jsonl").touch()
    check_unused(tmp_path, command="sft")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"run_dir: .* holds a run already; .* with rlstack sft"):
        check_unused(tmp_path, command="sft")


def job_folder(tmp_path: Path) -> Path:
    """Where the installed Ray unpacks the working directory of a job."""
    plugin: Any = WorkingDirPlugin(str(tmp_path / DEFAULT_RUNTIME_ENV_DIR_NAME), None)  # type: ignore[arg-type]
    return Path(plugin._resources_dir) / "_ray_pkg_0123"


def test_a_run_directory_that_ray_deletes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_folder(tmp_path)
    job.mkdir()
    monkeypatch.chdir(job)
    values = composed("sft", "model.path=m", f"data.train=[{SOURCE}]", "run_dir=runs/mine")
    with pytest.raises(ConfigError, match=r"run_dir: .*/runs/mine is in the .* of a Ray job"):
        preflight(parse(SFTConfig, values), command="sft", longest_row=8)
    stages = composed("pipeline", "stages=[{name: a, command: sft, arguments: []}]", "run_dir=p")
    with pytest.raises(ConfigError, match="of a Ray job"):
        pipeline.run(parse(PipelineConfig, stages))


def test_a_run_directory_beside_what_ray_deletes_lasts(tmp_path: Path) -> None:
    check_lasting(job_folder(tmp_path).parent.parent / "runs")
    check_lasting(tmp_path / "working_dir_files" / "runs")


def test_a_resumed_run_has_used_its_directory_itself(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    model = f"model.path={tmp_path / 'model'}"
    values = composed("sft", model, f"data.train=[{SOURCE}]", f"run_dir={tmp_path}")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="continue it with rlstack sft resume="):
        preflight(parse(SFTConfig, values), command="sft", longest_row=8)
    resumed = parse(SFTConfig, values | {"resume": str(tmp_path)})
    assert preflight(resumed, command="sft", longest_row=8).pad_token_id is not None
