"""What the doctor tries is data that composes; it says of a row that fails why."""

from pathlib import Path

import pytest

from rlstack.commands import doctor
from rlstack.commands.doctor_rows import Row, rows
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.errors import ConfigError
from tests.config.test_load import composed


@pytest.mark.parametrize("num_gpus", [0, 1, 2, 8])
def test_every_row_is_a_valid_configuration(num_gpus: int) -> None:
    found = rows(num_gpus=num_gpus)
    assert len({row.name for row in found}) == len(found)
    for row in found:
        config = parse(RLConfig, composed("rl", *doctor.STEP, "model.path=m", *row.overrides))
        assert config.placement.device == ("gpu" if num_gpus else "cpu")


def test_what_a_machine_is_too_small_for_is_refused_with_the_reason() -> None:
    refused = {row.name: row.refusal for row in rows(num_gpus=1) if row.refusal}
    assert refused["disaggregated (NCCL)"] == "needs 2 GPUs; there is 1"
    assert not [row for row in rows(num_gpus=8) if row.refusal]


def test_words_choose_rows() -> None:
    with pytest.raises(ConfigError, match="no row is called 'ZeRO 17'"):
        doctor.run(["ZeRO 17"])


def test_a_row_that_fails_says_why(tmp_path: Path) -> None:
    row = Row(name="impossible", overrides=("trainer.zero_stage=4",))
    problem = doctor.attempt(row, tmp_path, tmp_path / "run")
    assert problem is not None
    assert "trainer.zero_stage" in problem


@pytest.mark.real_stack
def test_the_first_row_of_a_cpu_works(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.run(["ZeRO 1,"])
    shown = capsys.readouterr().out
    assert "ZeRO 1, 2 ranks, float32" in shown
    assert "works, " in shown
