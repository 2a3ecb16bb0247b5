"""A run directory is used once; a run that failed before its first step does not count."""

from pathlib import Path

import pytest

from rlstack.commands.common import check_unused
from rlstack.errors import ConfigError


def test_a_used_run_directory_is_refused(tmp_path: Path) -> None:
    check_unused(tmp_path, command="sft")
    (tmp_path / "metrics.jsonl").touch()
    check_unused(tmp_path, command="sft")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"run_dir: .* holds a run already; .* with rlstack sft"):
        check_unused(tmp_path, command="sft")
