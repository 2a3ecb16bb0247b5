"""Files that ranks have written: forced to disk there, and looked for here."""

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlstack.errors import CheckpointError
from workers.specs import WrittenFiles

SEEN_WITHIN_S = 10.0
"""A network file system may show a file of another node later than it was written."""
POLL_S = 0.2


def written(files: Iterable[Path]) -> WrittenFiles:
    """What is known of `files` that this process has written; all of them are forced to disk."""
    sizes: dict[str, int] = {}
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        sizes[str(file)] = file.stat().st_size
    return WrittenFiles(node=socket.gethostname(), sizes=sizes)


def written_below(folder: Path) -> WrittenFiles:
    """`written` of all files in `folder`."""
    return written(file for file in sorted(folder.rglob("*")) if file.is_file())


async def check_seen(reports: Sequence[WrittenFiles]) -> None:
    """Wait until this process sees what ranks have written, each file with its size.

    Raises:
        CheckpointError: naming the first file that it does not see.
    """
    deadline = time.monotonic() + SEEN_WITHIN_S
    for report in reports:
        for name, size in report.sizes.items():
            while (found := _size(Path(name))) != size:
                if time.monotonic() > deadline:
                    seen = "is not there" if found is None else f"has {found} bytes"
                    raise CheckpointError(
                        f"{name}: {report.node} wrote {size} bytes, and for {socket.gethostname()} "
                        f"the file {seen}; run_dir must be on a disk that all nodes share"
                    )
                await asyncio.sleep(POLL_S)


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
