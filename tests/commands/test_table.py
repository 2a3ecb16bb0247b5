"""Every row of the table of commands leads to a module that can carry it out."""

import importlib
from importlib.resources import files

import pytest

from rlstack.commands.algorithms import catalog_page
from rlstack.commands.table import APPS, COMMANDS
from rlstack.config.resume import CHANGEABLE, UNIMPORTANT


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_module_that_runs_it(name: str) -> None:
    module = importlib.import_module(f"rlstack.commands.{COMMANDS[name].module}")
    assert callable(module.run)


@pytest.mark.parametrize("name", APPS)
def test_an_app_has_a_configuration_to_compose(name: str) -> None:
    assert files("conf").joinpath(f"{name}.yaml").is_file()


@pytest.mark.parametrize("name", APPS)
def test_what_trains_can_be_resumed_and_what_only_measures_cannot(name: str) -> None:
    resumable = "resume" in APPS[name].model_fields or name == "pipeline"
    assert (COMMANDS[name].resumed is not None) == resumable


def test_what_a_run_learns_nothing_from_may_change_when_it_is_resumed() -> None:
    assert set(UNIMPORTANT) < set(CHANGEABLE)


def test_nothing_is_printed_beside_what_a_command_prints_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    COMMANDS["algorithms"].run([])
    assert capsys.readouterr().out == catalog_page()
