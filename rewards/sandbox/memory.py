"""How much memory a whole program uses, all its processes together, seen from the host.

A limit on address space holds for each process; nothing in the kernel that an ordinary user may set
holds for a tree of them (a control group would, where one is delegated to us).
"""

import os
import re
from contextlib import suppress

CHECK_EVERY_S = 0.02
_PROPORTIONAL = re.compile(r"^Pss:\s+(\d+)", re.MULTILINE)
_RESIDENT = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+)", re.MULTILINE)


def descendants(process_id: int) -> set[int]:
    """The processes below one."""
    found: set[int] = set()
    waiting = [process_id]
    while waiting:
        children = _children(waiting.pop()) - found
        found |= children
        waiting += children
    return found


def can_list_children() -> bool:
    """Whether the kernel lists the children of processes (CONFIG_PROC_CHILDREN)."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def used_bytes(process_ids: set[int]) -> int:
    """Memory in use; pages that several share are counted once where the kernel lets us see it."""
    return sum(map(_used_bytes, process_ids))


def _children(process_id: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{process_id}/task"):
            with suppress(OSError), open(f"/proc/{process_id}/task/{thread}/children") as file:
                found |= set(map(int, file.read().split()))
    return found


def _used_bytes(process_id: int) -> int:
    for name, pattern in (("smaps_rollup", _PROPORTIONAL), ("status", _RESIDENT)):
        with suppress(OSError), open(f"/proc/{process_id}/{name}") as file:
            return 1024 * sum(map(int, pattern.findall(file.read())))
    return 0
