"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `final` when the block ends.

    After an error nothing of it is left, and what was at `final` is untouched.
    """
    partial = final.with_name(f".partial_{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush_to_disk(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush_to_disk(directory: Path) -> None:
    """Force every file to disk: the rename must not be all that survives a power cut."""
    for folder, _, names in os.walk(directory):
        for name in [*names, "."]:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
