"""The process that waits inside the sandbox and forks one child per program.

`python -I -S server.py FD SETTINGS`: FD is a socket on which jobs arrive, SETTINGS is JSON. A job
is one message: JSON and the descriptors the program gets as 0, 1, 2, ... One message goes back when
nothing of the program is left. Three processes take part in a job:

- the server forks a keeper and waits for it, nothing else;
- the keeper makes the namespaces, waits for the program and ends it: on time, when told to by a
  message (any), or when the host is gone;
- the program, the first process of its own namespace. When it is killed, everything in that
  namespace is gone with it.

What a program sees of this process is a copy: the code here, and the limits of its job.
"""

import array
import contextlib
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import candidate
import folders
import judge
import kernel

# What programs import most: forked from here they find it loaded.
for _name in [
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "io",
    "itertools",
    "math",
    "operator",
    "random",
    "re",
    "statistics",
    "string",
    "typing",
]:
    importlib.import_module(_name)

sys.path.pop(0)

_MAX_JOB_BYTES, _MAX_DESCRIPTORS = 65536, 8
_TMP = "/tmp"


def serve(control: socket.socket, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Take jobs until the host is gone (None); in the child that is to run a program, its job."""
    control.sendall(b"{}")
    while True:
        message, descriptors = _receive(control)
        if not message:
            return None
        job = json.loads(message)
        keeper = os.fork()
        if keeper == 0:
            if _keep(control, settings, job, descriptors):
                return job
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(keeper, 0)
        if status:
            return None


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    descriptors = array.array("i")
    size = socket.CMSG_LEN(_MAX_DESCRIPTORS * descriptors.itemsize)
    message, ancillary, _, _ = control.recvmsg(_MAX_JOB_BYTES, size)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) // descriptors.itemsize * descriptors.itemsize])
    return message, list(descriptors)


def _keep(
    control: socket.socket, settings: dict[str, Any], job: dict[str, Any], descriptors: list[int]
) -> bool:
    """Run one program and report; True in the process that is to become the program."""
    started = time.monotonic()
    contained = settings["mode"] == "bubblewrap"
    reply: dict[str, Any] = {}
    folder = _TMP
    report_read, report_write = os.pipe()
    try:
        if contained:
            kernel.new_namespaces(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)
            kernel.mount_private_tmp(_TMP, job["file_bytes"])
        else:
            kernel.adopt_orphans()
            folder = tempfile.mkdtemp(dir=settings["folder"])
            if settings["uid"] is not None:
                os.chown(folder, settings["uid"], settings["uid"])
        program = os.fork()
        if program == 0:
            control.close()
            os.close(report_read)
            _become_program(settings, job, descriptors, folder, report_write)
            return True
        os.close(report_write)
        for descriptor in descriptors:
            os.close(descriptor)
        reply = _wait(control, program, started + job["wall_s"])
        problem = os.read(report_read, 4096)
        if problem:
            reply = {"failed": problem.decode()}
    except OSError as error:
        reply = {"failed": str(error)}
    if not contained:
        _end_descendants()
        if folder != _TMP:
            # What is left by then goes when the sandbox is closed.
            folders.remove_tree(folder, within_s=0.3)
    reply["seconds"] = time.monotonic() - started
    control.sendall(json.dumps(reply).encode())
    return False


def _wait(control: socket.socket, program: int, deadline: float) -> dict[str, Any]:
    poll = select.poll()
    descriptor = os.pidfd_open(program)
    poll.register(descriptor, select.POLLIN)
    poll.register(control, select.POLLIN)
    events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    ended = descriptor in events
    if not ended:
        os.kill(program, signal.SIGKILL)
    if control.fileno() in events:
        control.recv(16)  # end it, whatever it says
    _, status, usage = os.wait4(program, 0)
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "timed_out": not events,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


def _end_descendants() -> None:
    """End what the program has left behind, until nothing is: each orphan becomes our child.

    A fork bomb is faster than a list of its processes, so all of them are stopped first: what is
    stopped does not fork.
    """
    while True:
        stopped: set[int] = set()
        while new := _descendants() - stopped:
            for process in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
            stopped |= new
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _descendants() -> set[int]:
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        process = waiting.pop()
        with contextlib.suppress(OSError):  # it has ended
            for thread in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{thread}/children") as file:
                    children = set(map(int, file.read().split())) - found
                found |= children
                waiting += children
    return found


def _become_program(
    settings: dict[str, Any], job: dict[str, Any], descriptors: list[int], folder: str, report: int
) -> None:
    try:
        _confine(settings, job, descriptors, folder, report)
    except OSError as error:
        os.write(report, str(error).encode()[:4096])
        os._exit(1)


def _confine(
    settings: dict[str, Any], job: dict[str, Any], descriptors: list[int], folder: str, report: int
) -> None:
    contained = settings["mode"] == "bubblewrap"
    os.setsid()
    # Above all targets first, so that no dup2 hits one that is still to be moved.
    moved = [os.dup2(fd, 100 + index, inheritable=False) for index, fd in enumerate(descriptors)]
    moved_report = os.dup2(report, 100 + len(moved), inheritable=False)
    for index, descriptor in enumerate(moved):
        os.dup2(descriptor, index, inheritable=True)
    os.closerange(len(moved), moved_report)
    os.closerange(moved_report + 1, 65536)
    # RLIMIT_NPROC counts every process of the user in its user namespace: bwrap, the server and
    # the keeper too, and without a namespace the whole machine's.
    count = 0
    if settings["uid"] is None:
        count = 3 if contained else _num_threads_of_user()
    if settings["uid"] is not None:
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    kernel.drop_capabilities()
    kernel.die_with_parent()
    os.chdir(folder)
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(
        HOME=folder, TMPDIR=folder, PATH="/usr/bin:/bin", LANG="C.UTF-8", PYTHONUTF8="1"
    )
    job["folder"] = folder
    _write_files(job, folder)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_NPROC, job["processes"] + count),
        (resource.RLIMIT_CPU, int(job["wall_s"]) + 2),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    kernel.no_new_privileges()
    if settings["mode"] == "landlock":
        kernel.install_landlock(settings["readable"], folder)
    kernel.install_seccomp(only_signal=None if contained else os.getpid())
    os.close(moved_report)


def _num_threads_of_user() -> int:
    """RLIMIT_NPROC counts all of the user's; without a namespace that is the whole machine's."""
    count = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if os.stat(f"/proc/{int(name)}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _write_files(job: dict[str, Any], folder: str) -> None:
    """Files arrive ahead of the program's own input: a length, then JSON {path: text}."""
    if job["files"]:
        (size,) = struct.unpack("!Q", _read_exactly(8))
        for path, text in json.loads(_read_exactly(size)).items():
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
                file.write(text)


def _read_exactly(size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(0, min(size, 1 << 20))
        if not piece:
            raise OSError("the job ended early")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def main() -> None:
    """Serve, or, in a forked child, run the program as the last thing done."""
    settings = json.loads(sys.argv[2])
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    kernel.hide_memory()
    kernel.die_with_parent()
    job = serve(control, settings)
    if job is None:
        return
    sys.argv = [job["command"][-1]]
    match job["kind"]:
        case "python":
            candidate.run_script("main.py")
        case "functions":
            candidate.serve_calls("main.py", job["entry_point"])
        case "judge":
            judge.run(
                "tests.py",
                "main.py",
                job["entry_point"],
                job["output_bytes"],
                count_asserts=job["count_asserts"],
            )
        case _:
            os.execvp(job["command"][0], job["command"])


main()
