"""The runs whose digests are compared: each is a configuration that its command takes."""

import pytest

from rlstack.commands.command_line import hydra_arguments
from rlstack.commands.table import APPS
from rlstack.config.load import parse
from tests.config.test_load import composed
from tools.weight_digests import RUNS


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_a_valid_configuration(run: str) -> None:
    command, *overrides = RUNS[run]
    arguments = hydra_arguments([*overrides, "model.path=model"], schema=APPS[command])
    assert parse(APPS[command], composed(command, *arguments))


def test_every_command_that_trains_has_a_run() -> None:
    trains = set(APPS) - {"eval", "pipeline"}
    assert {command for command, *_ in RUNS.values()} == trains
