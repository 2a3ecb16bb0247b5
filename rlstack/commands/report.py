"""`rlstack report`: the HTML report of a run, made anew."""

from collections.abc import Sequence
from pathlib import Path

from rlstack.errors import ConfigError
from rlstack.run.report import write_report


def run(arguments: Sequence[str]) -> None:
    """Write the report of RUN_DIR, and print where it is.

    Raises:
        ConfigError: if it is not exactly one that is named.
    """
    if len(arguments) != 1:
        raise ConfigError("usage: rlstack report RUN_DIR")
    print(write_report(Path(arguments[0])))
