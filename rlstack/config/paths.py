"""Types of paths, absolute once they are read.

Ranks and engines of a cluster run in folders of their own, where a relative path leads elsewhere.
"""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def _absolute_if_there(path: str) -> str:
    return os.path.abspath(path) if Path(path).exists() else path


def _absolute_file(plugin: str) -> str:
    return os.path.abspath(plugin) if plugin.endswith(".py") else plugin


# Symbolic links stay as they are: another node may lead them to the same disk by another way.
LocalPath = Annotated[str, AfterValidator(os.path.abspath)]
"""A file or folder, which need not be there yet."""

LocalOrHub = Annotated[str, AfterValidator(_absolute_if_there)]
"""A file or folder that is there, or else a name on a hub."""

Plugin = Annotated[str, AfterValidator(_absolute_file)]
"""A .py file, or else a module."""
