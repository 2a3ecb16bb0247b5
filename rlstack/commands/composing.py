"""Configurations of commands, for whoever runs several of them in one process."""

from contextlib import ExitStack
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from rlstack.commands.command_line import plain_values


def composed_values(name: str, overrides: list[str]) -> dict[str, Any]:
    """The configuration `name` with `overrides`, resolved.

    Inside a Hydra app its search path counts, and with it the user's --config-dir.
    """
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():
            stack.enter_context(initialize_config_module(version_base="1.3", config_module="conf"))
        return plain_values(compose(name, overrides=overrides))
