"""What goes between the host and the programs that run in sandboxes: inputs, outputs, limits."""

import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from rewards.sandbox import memory

# Beyond a program's own limit, until the sandbox itself is given up. Slow machines take a while to
# tear a namespace down.
_GRACE_S = 0.8
_CHUNK = 1 << 16


@dataclass
class RunningProgram:
    """A job under way in one sandbox."""

    control: socket.socket
    """Where the sandbox reports its end."""
    output_bytes: int
    """The most it may print on one descriptor."""
    stop: Callable[[], None]
    """Ends it; its outcome still arrives."""
    exceeds_memory: Callable[[], bool]
    inputs: dict[int, memoryview] = field(default_factory=dict[int, memoryview])
    outputs: dict[int, str] = field(default_factory=dict[int, str])
    received: dict[str, bytearray] = field(default_factory=dict[str, bytearray])
    exceeded: bool = False
    memory_exceeded: bool = False
    reply: dict[str, float] | None = None

    def close(self) -> None:
        """Close our ends of its descriptors."""
        for end in (*self.inputs, *self.outputs):
            os.close(end)
        self.inputs.clear()
        self.outputs.clear()


def exchange(programs: list[RunningProgram], wall_s: float) -> None:
    """Feed and read the programs until each sandbox has reported, or is given up."""
    deadline = time.monotonic() + wall_s + _GRACE_S
    with selectors.DefaultSelector() as selector:
        for program in programs:
            selector.register(program.control, selectors.EVENT_READ, program)
            for end in program.inputs:
                os.set_blocking(end, False)
                selector.register(end, selectors.EVENT_WRITE, program)
            for end in program.outputs:
                selector.register(end, selectors.EVENT_READ, program)
        waiting = len(programs)
        check_at = time.monotonic() + memory.CHECK_EVERY_S
        while selector.get_map() and (waiting or any(program.outputs for program in programs)):
            events = selector.select(max(0.0, min(deadline, check_at) - time.monotonic()))
            now = time.monotonic()
            if not events and now >= deadline:
                break
            if now >= check_at:
                _check_memory(programs)
                check_at = now + memory.CHECK_EVERY_S
            for key, _ in events:
                program: RunningProgram = key.data
                if isinstance(key.fileobj, socket.socket):
                    selector.unregister(key.fileobj)
                    waiting -= 1
                    message = b""
                    with suppress(ConnectionError):  # it died: `_outcome` says so
                        message = key.fileobj.recv(_CHUNK)
                    program.reply = json.loads(message) if message else None
                elif key.fd in program.inputs:
                    _feed(program, key.fd, selector)
                else:
                    _read(program, key.fd, selector)
    for program in programs:
        program.close()


def _check_memory(programs: list[RunningProgram]) -> None:
    for program in programs:
        if program.reply is None and not program.memory_exceeded and program.exceeds_memory():
            program.memory_exceeded = True
            program.stop()


def _feed(program: RunningProgram, end: int, selector: selectors.BaseSelector) -> None:
    try:
        program.inputs[end] = program.inputs[end][os.write(end, program.inputs[end][:_CHUNK]) :]
    except BrokenPipeError:  # it does not read its input
        program.inputs[end] = memoryview(b"")
    if not program.inputs[end]:
        selector.unregister(end)
        os.close(end)
        del program.inputs[end]


def _read(program: RunningProgram, end: int, selector: selectors.BaseSelector) -> None:
    name = program.outputs[end]
    data = os.read(end, _CHUNK)
    room = program.output_bytes - len(program.received[name])
    program.received[name] += data[:room]
    if len(data) > room:
        program.exceeded = True
        program.stop()
    if not data or program.exceeded:
        selector.unregister(end)
        os.close(end)
        del program.outputs[end]
