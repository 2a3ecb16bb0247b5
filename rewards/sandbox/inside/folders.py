"""Removing a folder that a program has filled with whatever it liked."""

import contextlib
import math
import os
import time

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(root: str, *, within_s: float = math.inf) -> None:
    """Remove a folder and all in it; what cannot be removed, or not in time, is left.

    Folders may be nested deeper than a path or a recursion may be long, so this walks from one to
    the next and back by `..`; nobody else may be at work in them.
    """
    deadline = time.monotonic() + within_s
    here = os.open(root, _FOLDER)
    left = [os.listdir(here)]
    names = [root]
    try:
        while time.monotonic() < deadline:
            if left[-1]:
                inner = _remove_or_open(left[-1].pop(), here)
                if inner is not None:
                    name, below = inner
                    os.close(here)
                    here = below
                    names.append(name)
                    left.append(os.listdir(here))
                continue
            left.pop()
            name = names.pop()
            if not left:
                with contextlib.suppress(OSError):
                    os.rmdir(root)
                return
            above = os.open("..", _FOLDER, dir_fd=here)
            os.close(here)
            here = above
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _remove_or_open(name: str, folder: int) -> tuple[str, int] | None:
    """Remove a file; a folder that can be entered comes back open."""
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)
        return None
    with contextlib.suppress(OSError):
        os.chmod(name, 0o700, dir_fd=folder)
        return name, os.open(name, _FOLDER, dir_fd=folder)
    return None
