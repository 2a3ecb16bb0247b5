"""Runs untrusted programs, each isolated from the host and, as far as `Mode` says, from the last.

A `Sandbox` is a process that waits inside the sandbox with a warm interpreter and forks one child
per program (`inside/server.py`). It is thrown away whenever anything about it is off.
"""

import array
import json
import os
import socket
import struct
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import asdict

from rewards.sandbox import launch, memory
from rewards.sandbox.exchange import RunningProgram, exchange
from rewards.sandbox.inside.folders import remove_tree
from rewards.sandbox.job import Job, Outcome, SandboxSettings

_START_S = 20.0
_PROBE = "import zipfile, ctypes\nprint('ready')"
"""Loads modules that only come from the interpreter's folder, as the program's own user."""


class SandboxDiedError(RuntimeError):
    """The sandbox did not do its part; it has been replaced and the program may be run again."""


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
        self._control: socket.socket | None = None
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
        program = self._begin(job, {})
        exchange([program], self.settings.limits.wall_s)
        return self._outcome(program)

    def run_judged(self, job: Job, tests: Job, judge: "Sandbox") -> tuple[Outcome, Outcome]:
        """Run `job` here and the `tests` that call its function in `judge`, joined by two pipes.

        The outcome of the job, and that of the tests, whose `results` are the verdict.

        Raises:
            SandboxDiedError: if one of the sandboxes failed.
        """
        calls_in, calls_out = os.pipe()
        results_in, results_out = os.pipe()
        try:
            judged = self._begin(job, {3: calls_in, 4: results_out})
            testing = judge._begin(tests, {3: calls_out, 4: results_in})
        finally:
            for descriptor in (calls_in, calls_out, results_in, results_out):
                os.close(descriptor)
        exchange([judged, testing], self.settings.limits.wall_s)
        return self._outcome(judged), judge._outcome(testing)

    def close(self) -> None:
        """End it at once; closing again does nothing."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
        if self._folder:
            remove_tree(self._folder)
        self._process, self._control, self._folder = None, None, ""

    def _start(self) -> None:
        mode = self.settings.mode
        control, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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
        with remote:
            self._process = subprocess.Popen(
                [*command, str(remote.fileno()), json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(remote.fileno(),),
            )
        self._control = control
        control.settimeout(_START_S)
        try:
            ready = control.recv(64)
        except TimeoutError:
            ready = b""
        if not ready:
            self._process.kill()
            assert self._process.stderr is not None, "it was asked for"
            reason = self._process.stderr.read().decode(errors="replace")
            self.close()
            raise launch.refusal(mode, reason)
        self._own_processes = memory.descendants(self._process.pid)

    def _begin(self, job: Job, shared: dict[int, int]) -> RunningProgram:
        """Send the job with its descriptors; `shared`: descriptors that belong to two jobs."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        assert self._control is not None, "it was just started"
        program = RunningProgram(
            self._control,
            output_bytes=self.settings.limits.output_bytes,
            stop=self._stop_program,
            exceeds_memory=self._exceeds_memory,
        )
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
            program.inputs[end] = memoryview(data)
        for number, name in outputs.items():
            end, given[number] = os.pipe()
            opened.append(given[number])
            program.outputs[end] = name
            program.received[name] = bytearray()
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
            self._control.sendmsg(
                [json.dumps(message).encode()],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)],
            )
        except OSError as error:
            program.close()
            self.close()
            raise SandboxDiedError(f"the sandbox takes no programs: {error}") from None
        finally:
            for descriptor in opened:
                os.close(descriptor)
        return program

    def _stop_program(self) -> None:
        """End the program that is running; its outcome still arrives."""
        if self._control is not None:
            with suppress(OSError):
                self._control.send(b"stop")

    def _exceeds_memory(self) -> bool:
        """Whether the processes of the program together use more than they may."""
        if self._process is None:
            return False
        programs = memory.descendants(self._process.pid) - self._own_processes
        return memory.used_bytes(programs) > self.settings.limits.memory_bytes

    def _outcome(self, program: RunningProgram) -> Outcome:
        reply = program.reply
        if reply is None or "failed" in reply:
            reason = "it gave no answer" if reply is None else str(reply["failed"])
            self.close()
            raise SandboxDiedError(f"the sandbox failed: {reason}")
        return Outcome(
            exit_code=int(reply["exit_code"]),
            timed_out=bool(reply["timed_out"]),
            output_exceeded=program.exceeded,
            memory_exceeded=program.memory_exceeded,
            stdout=bytes(program.received["stdout"]),
            stderr=bytes(program.received["stderr"]),
            results=bytes(program.received.get("results", b"")),
            seconds=reply["seconds"],
            cpu_s=reply["cpu_s"],
        )
