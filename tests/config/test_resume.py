"""`resume=auto`: whether a run has begun, and whether it is the same."""

from pathlib import Path

import pytest

from rlstack.config.load import dump, parse
from rlstack.config.resume import started_or_resumed
from rlstack.config.run import RLConfig
from rlstack.errors import ConfigError
from tests.config.test_load import rl_values


def config(run_dir: Path, *overrides: str) -> RLConfig:
    return parse(RLConfig, rl_values(*overrides) | {"run_dir": str(run_dir)})


def begun(run_dir: Path, *overrides: str) -> None:
    """What a run of this configuration has left before its first checkpoint."""
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(dump(config(run_dir, *overrides)))


def test_in_an_empty_place_a_run_starts(tmp_path: Path) -> None:
    given = config(tmp_path / "run")
    assert started_or_resumed(given) == given


def test_a_run_that_has_begun_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    begun(run_dir, f"resume={run_dir}", "total_steps=5")
    changed = config(run_dir, "total_steps=9", "tracking.console=false", "ray_address=auto")
    chosen = started_or_resumed(changed)
    assert chosen == changed.model_copy(update={"resume": str(run_dir)})


def test_another_configuration_is_refused_key_by_key(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    begun(run_dir)
    with pytest.raises(ConfigError) as caught:
        started_or_resumed(config(run_dir, "trainer.learning_rate=0.5", "algorithm=ppo"))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"resume=auto: in {run_dir} a run with another configuration")
    assert any(line.endswith("-> 0.5") and "  trainer.learning_rate: " in line for line in lines)
    assert "  algorithm.advantage.name: grpo -> gae" in lines
