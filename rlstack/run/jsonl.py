"""JSON lines on disk: how a run keeps its metrics, its timeline and its rollouts.

A process may be killed while it writes, so a last line without its newline is not there yet.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlstack.errors import DataError
from rlstack.run.folders import whole_file

Record = Mapping[str, Any]


def append(path: Path, *records: Record) -> None:
    """Add records at the end of `path`: all of them, or none.

    Raises:
        OSError: naming the path, if it cannot be written (disk full, no permission).
    """
    size = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(map(_line, records))
    except OSError as error:
        if path.is_file():
            os.truncate(path, size)  # half a line would spoil the next one
        # An error while writing, unlike one while opening, does not name the file by itself.
        raise OSError(error.errno, error.strerror, str(path)) from error


def write(path: Path, records: Iterable[Record]) -> None:
    """Replace `path` by `records`: a reader sees the old file or the new one, never a half.

    Raises:
        OSError: naming the path, if it cannot be written (disk full, no permission).
    """
    with whole_file(path) as file:
        file.writelines(map(_line, records))


def read(path: Path) -> list[Record]:
    """The records of `path`; none if there is no such file.

    Raises:
        DataError: naming file and line, if a line is not JSON.
    """
    if not path.is_file():
        return []
    records: list[Record] = []
    # Not splitlines(): it also splits at U+2028 and the like, which may stand inside a string.
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not a JSON record: {error}") from error
    return records


def keep(path: Path, wanted: Callable[[Record], bool]) -> None:
    """Drop every record that is not `wanted`."""
    if path.is_file():
        write(path, [record for record in read(path) if wanted(record)])


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
