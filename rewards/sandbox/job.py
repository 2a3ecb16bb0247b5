"""What goes into the sandbox and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["bubblewrap", "landlock", "rlimits"]
"""`bubblewrap`: namespaces, seccomp and limits: nothing of the host is there, and nothing of a
program outlives it. `landlock`: the host's files are out of reach, but its processes can be seen.
`rlimits`: seccomp and limits only: files that any user may read can be read, and those written
where any user may write, such as /tmp, stay, for the next program to read. In these two, what takes
longer than 0.3 s to remove of a program's own folder stays until the sandbox closes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use; more ends or stops it."""

    wall_s: float = 5.0
    memory_bytes: int = 512 << 20
    """Address space of each process, and memory in use of all of them together."""
    processes: int = 16
    """Processes and threads together."""
    file_bytes: int = 16 << 20
    """One file; with `bubblewrap` all files together."""
    output_bytes: int = 1 << 20
    """Standard output and standard error, each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One program.

    kind: `python` runs `main.py`; `functions` runs it and then answers calls on descriptor 3;
        `judge` runs `tests.py`, whose calls go to another sandbox; `command` runs `command`.
    """

    kind: Literal["python", "functions", "judge", "command"] = "python"
    files: Mapping[str, str]
    """Text by relative path."""
    stdin: str = ""
    command: tuple[str, ...] = ("main.py",)
    entry_point: str = ""
    calls: bytes = b""
    """For `functions`: one line a call."""
    count_asserts: bool = False
    """For `judge`: go on after an assert that fails, and tell the share that passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a program. Everything in it but the times was written by the program."""

    exit_code: int
    """Or minus the signal that ended it."""
    timed_out: bool
    output_exceeded: bool
    memory_exceeded: bool
    """All its processes together; one alone gets a MemoryError."""
    stdout: bytes
    stderr: bytes
    results: bytes = b""
    """For `functions`: one line a call that was answered; for `judge`: the verdict."""
    seconds: float
    cpu_s: float
    """Of the program and the children it waited for."""

    @property
    def finished(self) -> bool:
        """Whether it ended by itself, successfully and within its limits."""
        return self.exit_code == 0 and not (
            self.timed_out or self.output_exceeded or self.memory_exceeded
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """How programs are confined."""

    mode: Mode = "bubblewrap"
    limits: Limits = field(default_factory=Limits)
    python: str = ""
    """Interpreter of the programs; default: the one that runs this process, without packages."""
    readable: tuple[str, ...] = ()
    """Further folders and files that programs may read, at the same paths."""
