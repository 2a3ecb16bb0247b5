"""Files and folders that appear whole or not at all, and that a power cut does not take back."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from rlstack.errors import ConfigError

JOB_FOLDERS = ("runtime_resources", "working_dir_files")
"""Where Ray unpacks the working directory of a job: /tmp/ray/SESSION/these/PACKAGE."""


def check_lasting(run_dir: Path) -> None:
    """Refuse a run directory that Ray deletes.

    Raises:
        ConfigError: if it is in the working directory that Ray has made for a job.
    """
    if JOB_FOLDERS in pairwise(run_dir.resolve().parts):
        raise ConfigError(
            f"run_dir: {run_dir} is in the working directory of a Ray job, which Ray deletes after "
            "it, checkpoints and all; give an absolute path on a disk that all nodes share, as in "
            "run_dir=/shared/runs/NAME"
        )


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A file to write, UTF-8, which takes the place of `path` when the block ends.

    A reader, and whoever starts after a kill, finds the old contents or the new ones.

    Raises:
        OSError: naming `path`, if it cannot be written (disk full, no permission).
    """
    partial = path.with_name(f".partial_{path.name}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        # An error while writing, unlike one while opening, does not name the file by itself.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, text: str) -> None:
    """Replace `path` by `text`; see `whole_file`."""
    with whole_file(path) as file:
        file.write(text)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `final` when the block ends.

    After an error nothing of it is left, and what was at `final` is untouched. That is moved aside
    before the new folder gets its name, and removed after: at no moment are both gone.
    """
    partial, replaced = (final.with_name(f".{word}_{final.name}") for word in ("partial", "old"))
    _put_back(replaced, final)  # where a kill came between the two names
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush_to_disk(partial)
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        sync(final.parent)
        sync(final.parent.parent)  # the folder around it may be new too
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        _put_back(replaced, final)
        shutil.rmtree(partial, ignore_errors=True)


def _put_back(replaced: Path, final: Path) -> None:
    if replaced.exists() and not final.exists():
        replaced.rename(final)


def _flush_to_disk(directory: Path) -> None:
    """Force every file to disk: the rename must not be all that survives a power cut."""
    for folder, _, names in os.walk(directory):
        for name in [*names, "."]:
            sync(Path(folder) / name)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
