"""A program of ours in a process of its own, which speaks over a descriptor it inherits.

It is started as a program and not through `multiprocessing`: its fork copies the driver's threads'
locks, and its spawn imports the driver's main module, with torch and ray, again.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


class ChildProcess:
    """`python -m PROGRAM DESCRIPTOR`, started in `directory`."""

    def __init__(self, program: str, descriptor: int, *, directory: Path) -> None:
        # -P: a file in the current folder must not shadow a module of ours.
        # -u: what a plugin prints is seen even if the process is killed.
        options = ["-P", "-u", "-W", "ignore::SyntaxWarning"]
        self._process = subprocess.Popen(
            [sys.executable, *options, "-m", program, str(descriptor)],
            # It must find the modules, plugins included, that we find.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            # Ctrl-C is for the driver; and whatever a plugin starts is ended with it.
            process_group=0,
        )

    @property
    def exit_code(self) -> int:
        """Exit code of an ended process, or minus the signal that ended it."""
        return self._process.wait()

    def kill(self) -> None:
        """End it and everything it started."""
        # Once it has been waited for, the process id may be somebody else's.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def release(self) -> None:
        """Wait for the end of a killed process."""
        self._process.wait()
