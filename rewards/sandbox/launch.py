"""The command that starts a sandbox in each mode, and what its refusal means."""

import os
import random
import shutil
import sys
from pathlib import Path

from rewards.sandbox.job import Mode
from rlstack.errors import RewardError

INSIDE = Path(__file__).parent / "inside"
PYTHON_FOLDER = "/python"
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_WEAKER = (
    "Weaker modes exist and are never chosen for you: mode=landlock (no namespaces: files are out "
    "of reach, processes are not hidden) and mode=rlimits (limits and a system call filter only)."
)


def interpreter(python: str) -> str:
    """The interpreter itself, not a virtual environment's link to it.

    Raises:
        RewardError: if there is none.
    """
    found = shutil.which(python or sys.executable)
    if found is None:
        raise RewardError(f"the sandbox's python {python!r} does not exist. Correct `python`.")
    return os.path.realpath(found)


def prefix(python: str) -> str:
    """The folder that the interpreter and its standard library are installed in."""
    return str(Path(python).parents[1])


def readable_paths(python: str, extra: tuple[str, ...]) -> list[str]:
    """The interpreter's prefix, the system's libraries and what the configuration adds.

    Raises:
        RewardError: if an added path does not exist.
    """
    for path in extra:
        if not os.path.exists(path):
            raise RewardError(f"the sandbox's readable path {path!r} does not exist. Remove it.")
    own = [python] if prefix(python) == "/usr" else [prefix(python)]
    wanted = [*own, *_LIBRARIES]
    return [path for path in [*wanted, *extra] if os.path.exists(path)]


def unprivileged_user() -> int | None:
    """For root: a user id that nothing else uses, so that limits on it count one sandbox only."""
    return random.SystemRandom().randrange(20_000, 60_000) if os.geteuid() == 0 else None


def bubblewrap_command(python: str, readable: list[str]) -> list[str]:
    """`bwrap` and its arguments, up to and with the interpreter.

    Raises:
        RewardError: if bubblewrap is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise RewardError(
            "the sandbox needs bubblewrap, and there is no `bwrap` on the PATH. Install it: "
            f"apt-get install bubblewrap. {_WEAKER}"
        )
    command = [program, "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--hostname", "sandbox"]
    # The server keeps what it needs to make a namespace for each program; no program does.
    command += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    if os.geteuid() == 0:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
            command += ["--cap-add", capability]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    # Mounted elsewhere: its own path may lead through a folder that only root may enter.
    own_prefix = prefix(python) != "/usr"
    for folder in sorted({str(up) for path in readable for up in Path(path).parents} - {"/"}):
        # Those that bubblewrap makes by itself are closed to the programs' user.
        command += ["--perms", "0755", "--dir", folder]
    for path in readable:
        command += ["--ro-bind", path, PYTHON_FOLDER if path == prefix(python) else path]
    command += ["--ro-bind", str(INSIDE), "/sandbox", "--dir", "/tmp", "--dir", "/dev"]
    for device in _DEVICES:
        command += ["--dev-bind", device, device]
    command += ["--symlink", "/tmp", "/dev/shm", "--remount-ro", "/", "--chdir", "/"]
    return [*command, python.replace(prefix(python), PYTHON_FOLDER) if own_prefix else python]


def refusal(mode: Mode, reason: str) -> RewardError:
    """The error for a sandbox that does not start."""
    reason = reason.strip()[-1000:] or "it ended without a word"
    if mode == "bubblewrap":
        fix = (
            "It needs namespaces: allow them for this user (sysctl user.max_user_namespaces > 0; "
            "kernel.unprivileged_userns_clone=1 on older Debian; "
            "kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu; in a container "
            f"a seccomp profile that permits unshare and mount). {_WEAKER}"
        )
    elif mode == "landlock":
        fix = (
            "It needs a kernel of 5.13 or later with landlock in its list of security modules "
            "(boot with lsm=landlock,...), and as root an interpreter that other users may read "
            "(`python`). The weaker mode is mode=rlimits (limits and a system call filter only)."
        )
    else:
        fix = (
            "It needs a kernel with seccomp filters (x86_64 or aarch64), and as root an "
            "interpreter that other users may read (`python`). There is no weaker mode."
        )
    return RewardError(f"the sandbox (mode={mode}) does not start: {reason}. {fix}")
