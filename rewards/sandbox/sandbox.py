"""Runs untrusted programs, each isolated from the host and, as far as `Mode` says, from the last.

A `Sandbox` is a process that waits inside the sandbox with a warm interpreter and forks one child
per program (`inside/server.py`). It is thrown away whenever anything about it is off.
"""

import array
import json
import os
import selectors
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from rewards.sandbox import launch, memory
from rewards.sandbox.inside.folders import remove_tree
from rewards.sandbox.job import Job, Outcome, SandboxSettings

_START_S = 20.0
# Beyond a program's own limit, until the sandbox itself is given up. Slow machines take a while to
# tear a namespace down.
_GRACE_S = 0.8
_CHUNK = 1 << 16
_PROBE = "import zipfile, ctypes\nprint('ready')"
"""Loads modules that only come from the interpreter's folder, as the program's own user."""


class SandboxDiedError(RuntimeError):
    """The sandbox did not do its part; it has been replaced and the program may be run again."""


@dataclass
class _Task:
    """A job under way in one sandbox."""

    sandbox: "Sandbox"
    inputs: dict[int, memoryview] = field(default_factory=dict[int, memoryview])
    outputs: dict[int, str] = field(default_factory=dict[int, str])
    received: dict[str, bytearray] = field(default_factory=dict[str, bytearray])
    exceeded: bool = False
    memory_exceeded: bool = False
    reply: dict[str, float] | None = None


class Sandbox:
    """One warm sandbox; runs one program at a time. Not for several threads.

    It ends with the thread that started it, and is started again by the next program.
    """

    def __init__(self, settings: SandboxSettings) -> None:
        """Start it and run a small program in it.

        Raises:
            RewardError: if the mode does not work on this machine; names what is missing.
        """
        self.settings = settings
        self._python = launch.interpreter(settings.python)
        self._readable = launch.readable_paths(self._python, settings.readable)
        self._process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None
        self._folder = ""
        self._own_processes: set[int] = set()
        self._start()
        try:
            probe = self.run(Job(files={"main.py": _PROBE}))
        except SandboxDiedError as error:
            self.close()
            raise launch.refusal(settings.mode, str(error)) from None
        if probe.stdout != b"ready\n":
            self.close()
            raise launch.refusal(settings.mode, probe.stderr.decode(errors="replace"))
        if not memory.can_list_children():
            self.close()
            raise launch.refusal(
                settings.mode, "the kernel does not list children (CONFIG_PROC_CHILDREN)"
            )

    def run(self, job: Job) -> Outcome:
        """Run one program; none of its processes is left when this returns, nor, unless there were
        too many to remove in time in the weaker modes (`Mode`), any of its files.

        Raises:
            SandboxDiedError: if the sandbox failed, which is not the program's result.
        """
        task = self._begin(job, {})
        _attend([task], self.settings.limits.wall_s)
        return self._outcome(task)

    def run_judged(self, job: Job, tests: Job, judge: "Sandbox") -> tuple[Outcome, Outcome]:
        """Run `job` here and the `tests` that call its function in `judge`, joined by two pipes.

        The outcome of the job, and that of the tests, whose `results` are the verdict.

        Raises:
            SandboxDiedError: if one of the sandboxes failed.
        """
        calls_in, calls_out = os.pipe()
        results_in, results_out = os.pipe()
        try:
            ours = self._begin(job, {3: calls_in, 4: results_out})
            theirs = judge._begin(tests, {3: calls_out, 4: results_in})
        finally:
            for descriptor in (calls_in, calls_out, results_in, results_out):
                os.close(descriptor)
        _attend([ours, theirs], self.settings.limits.wall_s)
        return self._outcome(ours), judge._outcome(theirs)

    def close(self) -> None:
        """End it at once; closing again does nothing."""
        if self.control is not None:
            self.control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
        if self._folder:
            remove_tree(self._folder)
        self._process, self.control, self._folder = None, None, ""

    def _start(self) -> None:
        mode = self.settings.mode
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = ["-I", "-S", "-X", "utf8"]
        if mode == "bubblewrap":
            command = launch.bubblewrap_command(self._python, self._readable)
            command += [*options, "/sandbox/server.py"]
        else:
            self._folder = tempfile.mkdtemp(prefix="rlstack-sandbox-")
            os.chmod(self._folder, 0o711)
            command = [self._python, *options, str(launch.INSIDE / "server.py")]
        settings = {
            "mode": mode,
            "uid": launch.unprivileged_user(),
            "folder": self._folder,
            "readable": self._readable,
        }
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(theirs.fileno(),),
            )
        self.control = ours
        ours.settimeout(_START_S)
        try:
            ready = ours.recv(64)
        except TimeoutError:
            ready = b""
        if not ready:
            self._process.kill()
            assert self._process.stderr is not None, "it was asked for"
            reason = self._process.stderr.read().decode(errors="replace")
            self.close()
            raise launch.refusal(mode, reason)
        self._own_processes = memory.descendants(self._process.pid)

    def _begin(self, job: Job, shared: dict[int, int]) -> _Task:
        """Send the job with its descriptors; `shared`: descriptors that belong to two jobs."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        assert self.control is not None, "it was just started"
        task = _Task(self)
        files = json.dumps(dict(job.files)).encode()
        head = struct.pack("!Q", len(files)) + files if job.files else b""
        inputs = {0: head + job.stdin.encode(errors="surrogatepass")}
        outputs = {1: "stdout", 2: "stderr"}
        if job.kind == "functions" and not shared:
            inputs[3], outputs[4] = job.calls, "results"
        if job.kind == "judge":
            outputs[5] = "results"
        given = dict(shared)
        opened: list[int] = []
        for number, data in inputs.items():
            given[number], end = os.pipe()
            opened.append(given[number])
            task.inputs[end] = memoryview(data)
        for number, name in outputs.items():
            end, given[number] = os.pipe()
            opened.append(given[number])
            task.outputs[end] = name
            task.received[name] = bytearray()
        message = {
            **asdict(self.settings.limits),
            "kind": job.kind,
            "command": job.command,
            "entry_point": job.entry_point,
            "count_asserts": job.count_asserts,
            "files": bool(job.files),
        }
        descriptors = array.array("i", [given[number] for number in sorted(given)])
        try:
            self.control.sendmsg(
                [json.dumps(message).encode()],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)],
            )
        except OSError as error:
            _close_all(task)
            self.close()
            raise SandboxDiedError(f"the sandbox takes no programs: {error}") from None
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return task

    def stop_program(self) -> None:
        """End the program that is running; its outcome still arrives."""
        if self.control is not None:
            with suppress(OSError):
                self.control.send(b"stop")

    def exceeds_memory(self) -> bool:
        """Whether the processes of the program together use more than they may."""
        if self._process is None:
            return False
        programs = memory.descendants(self._process.pid) - self._own_processes
        return memory.used_bytes(programs) > self.settings.limits.memory_bytes

    def _outcome(self, task: _Task) -> Outcome:
        reply = task.reply
        if reply is None or "failed" in reply:
            reason = "it gave no answer" if reply is None else str(reply["failed"])
            self.close()
            raise SandboxDiedError(f"the sandbox failed: {reason}")
        return Outcome(
            exit_code=int(reply["exit_code"]),
            timed_out=bool(reply["timed_out"]),
            output_exceeded=task.exceeded,
            memory_exceeded=task.memory_exceeded,
            stdout=bytes(task.received["stdout"]),
            stderr=bytes(task.received["stderr"]),
            results=bytes(task.received.get("results", b"")),
            seconds=reply["seconds"],
            cpu_s=reply["cpu_s"],
        )


def _attend(tasks: list[_Task], wall_s: float) -> None:
    """Feed and read the programs until each sandbox has reported, or is given up."""
    deadline = time.monotonic() + wall_s + _GRACE_S
    with selectors.DefaultSelector() as selector:
        for task in tasks:
            assert task.sandbox.control is not None, "it has begun"
            selector.register(task.sandbox.control, selectors.EVENT_READ, task)
            for end in task.inputs:
                os.set_blocking(end, False)
                selector.register(end, selectors.EVENT_WRITE, task)
            for end in task.outputs:
                selector.register(end, selectors.EVENT_READ, task)
        waiting = len(tasks)
        check_at = time.monotonic() + memory.CHECK_EVERY_S
        while selector.get_map() and (waiting or any(task.outputs for task in tasks)):
            events = selector.select(max(0.0, min(deadline, check_at) - time.monotonic()))
            now = time.monotonic()
            if not events and now >= deadline:
                break
            if now >= check_at:
                _check_memory(tasks)
                check_at = now + memory.CHECK_EVERY_S
            for key, _ in events:
                task: _Task = key.data
                if isinstance(key.fileobj, socket.socket):
                    selector.unregister(key.fileobj)
                    waiting -= 1
                    message = b""
                    with suppress(ConnectionError):  # it died: `_outcome` says so
                        message = key.fileobj.recv(_CHUNK)
                    task.reply = json.loads(message) if message else None
                elif key.fd in task.inputs:
                    _feed(task, key.fd, selector)
                else:
                    _read(task, key.fd, selector)
    for task in tasks:
        _close_all(task)


def _check_memory(tasks: list[_Task]) -> None:
    for task in tasks:
        if task.reply is None and not task.memory_exceeded and task.sandbox.exceeds_memory():
            task.memory_exceeded = True
            task.sandbox.stop_program()


def _feed(task: _Task, end: int, selector: selectors.BaseSelector) -> None:
    try:
        task.inputs[end] = task.inputs[end][os.write(end, task.inputs[end][:_CHUNK]) :]
    except BrokenPipeError:  # it does not read its input
        task.inputs[end] = memoryview(b"")
    if not task.inputs[end]:
        selector.unregister(end)
        os.close(end)
        del task.inputs[end]


def _read(task: _Task, end: int, selector: selectors.BaseSelector) -> None:
    name = task.outputs[end]
    data = os.read(end, _CHUNK)
    room = task.sandbox.settings.limits.output_bytes - len(task.received[name])
    task.received[name] += data[:room]
    if len(data) > room:
        task.exceeded = True
        task.sandbox.stop_program()
    if not data or task.exceeded:
        selector.unregister(end)
        os.close(end)
        del task.outputs[end]


def _close_all(task: _Task) -> None:
    for end in (*task.inputs, *task.outputs):
        os.close(end)
    task.inputs.clear()
    task.outputs.clear()
