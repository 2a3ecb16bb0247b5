"""The `rlstack` command as a process: help, configuration, completion, and its error messages."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlstack.cli import _explain
from rlstack.commands.table import COMMANDS
from rlstack.config.load import dump, parse
from rlstack.config.supervised import SFTConfig
from tests.config.test_load import composed

ROOT = Path(__file__).parents[1]


def rlstack(
    *arguments: str, cwd: Path, module: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`module`: as `python -m rlstack.cli`, which puts the current folder on Python's path."""
    script = [str(Path(sys.executable).with_name("rlstack"))]
    command = [sys.executable, "-m", "rlstack.cli"] if module else script
    return subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    found = rlstack("--help", cwd=tmp_path)
    assert found.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command}\s", found.stdout, re.MULTILINE)


def test_a_commands_help_lists_groups_and_keys(tmp_path: Path) -> None:
    found = rlstack("rl", "--help", cwd=tmp_path)
    assert found.returncode == 0
    assert "dr_grpo, gmpo" in found.stdout
    assert "\nexperiment: " in found.stdout
    assert "gsm8k_grpo, " in found.stdout
    assert "temperature: 1.0" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_prints_the_composed_configuration(tmp_path: Path) -> None:
    found = rlstack("rl", "experiment=math_dapo", "--cfg", "job", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "clip_high: 0.28" in found.stdout


def test_every_mistake_of_a_command_line_is_in_one_message(tmp_path: Path) -> None:
    found = rlstack(
        "rl",
        "learning_rate=1e-5",
        "trainer.zero_stages=2",
        "rollout.num_samples=many",
        "data.train=[{type: file, path: a.jsonl}]",
        "evaluation.every=0",
        "checkpoint.keep_best=eval/pass@1",
        cwd=tmp_path,
    )
    assert found.returncode == 2
    for expected in (
        "5 problems in the configuration",
        "model.path: must be given: model.path=VALUE",
        "learning_rate: unknown key; did you mean trainer.learning_rate?",
        "trainer.zero_stages: unknown key; did you mean trainer.zero_stage?",
        "rollout.num_samples: got many; expected an integer",
        "checkpoint.keep_best: needs evaluations",
    ):
        assert expected in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["rll"],
            "unknown command 'rll'; one of quickstart, rl, sft, reward_model, dpo, ",
        ),
        (["rl", "algorithm=ppoo"], "algorithm/ppoo"),
        (["rl", "resume=nowhere"], "nowhere is not a run directory"),
        (["report"], "usage: rlstack report RUN_DIR"),
        (["report", "nowhere"], "nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_named(arguments: list[str], expected: str, tmp_path: Path) -> None:
    found = rlstack(*arguments, cwd=tmp_path)
    assert found.returncode != 0
    assert expected in found.stderr
    assert "Traceback" not in found.stderr


def test_automatic_resume_needs_a_directory_that_stays(tmp_path: Path) -> None:
    for command in ("rl", "pipeline"):
        found = rlstack(command, "model.path=m", "resume=auto", cwd=tmp_path)
        assert found.returncode == 2
        assert "resume=auto: give run_dir=DIR" in found.stderr


def test_a_run_goes_on_by_itself_if_it_is_the_same(tmp_path: Path) -> None:
    """As far as the first thing that is wrong with it: its model is not there."""
    source = "data.train=[{type: file, path: rows.jsonl}]"
    given = ["sft", "model.path=none", source, "run_dir=mine", "resume=auto"]
    found = rlstack(*given, cwd=tmp_path)
    assert "model.path" in found.stderr
    rows = f"data.train=[{{type: file, path: {tmp_path}/rows.jsonl}}]"
    values = composed("sft", "model.path=none", rows) | {"run_dir": f"{tmp_path}/mine"}
    config = parse(SFTConfig, values)
    (tmp_path / "mine/config.yaml").write_text(dump(config))
    (tmp_path / "mine/metrics.jsonl").write_text('{"step": 1}\n')
    found = rlstack(*given, cwd=tmp_path)
    assert "model.path" in found.stderr, found.stderr
    assert "holds a run already" not in found.stderr
    found = rlstack(*given, "trainer.learning_rate=0.5", cwd=tmp_path)
    assert re.search(r"trainer\.learning_rate: .* -> 0\.5", found.stderr)


def test_a_sweep_takes_each_value_in_turn(tmp_path: Path) -> None:
    values = "rollout.temperature=warm,hot"
    found = rlstack("eval", "model.path=m", values, "--multirun", cwd=tmp_path)
    assert found.returncode == 2
    assert "rollout.temperature: got warm; expected a number" in found.stderr


def test_the_shell_completes_commands_groups_and_options(tmp_path: Path) -> None:
    commands = rlstack("-sc", "query=bash", cwd=tmp_path, COMP_LINE="rlstack ", COMP_POINT="8")
    assert commands.stdout.split() == [
        "quickstart",
        "rl",
        "sft",
        "reward_model",
        "dpo",
        "rejection_sampling",
        "eval",
        "pipeline",
        "merge",
        "doctor",
        "report",
        "algorithms",
        "rewards",
    ]
    line = "rlstack rl algorithm="
    options = rlstack(
        "rl", "-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line))
    )
    assert "algorithm=dapo" in options.stdout.split()


def test_a_folder_named_like_our_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("raise SystemExit('the wrong file was imported')\n")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    found = rlstack("rl", "model.path=m", cwd=tmp_path, module=True, **environment)
    assert found.returncode == 2
    assert "the Python package 'rewards' is" in found.stderr
    assert "rename" in found.stderr


def test_a_full_disk_is_a_message_and_other_system_errors_keep_their_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        _explain(OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl"))
    assert "run/metrics.jsonl" in capsys.readouterr().err
    with pytest.raises(PermissionError):
        _explain(PermissionError(errno.EACCES, "Permission denied"))
