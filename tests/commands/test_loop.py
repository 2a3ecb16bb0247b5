"""What comes after the last step."""

from pathlib import Path

import pytest

from rlstack.commands.loop import with_report
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.run.progress import Summary
from tests.config.test_load import rl_values


def test_a_run_whose_report_cannot_be_written_is_done_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse(RLConfig, rl_values() | {"run_dir": str(tmp_path)})
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 2.0, "x": 1.0}\n')
    done = Summary(steps_completed=1, model=tmp_path / "export")
    assert with_report(done, config).report == tmp_path / "report.html"
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    assert with_report(done, config) == done
    assert f"rlstack report {tmp_path}" in capsys.readouterr().out
