"""What the sandbox gives a program, takes from it, and says when it cannot start."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer

import psutil
import pytest

from rewards.sandbox import launch
from rewards.sandbox.job import Job, Limits, Mode, Outcome, SandboxSettings
from rewards.sandbox.sandbox import Sandbox, SandboxDiedError
from rlstack.errors import RewardError

# How soon a program is ended counts here, so other tests must not take the cores.
pytestmark = pytest.mark.alone

SMALL = Limits(wall_s=1.0, memory_bytes=128 << 20, processes=8, file_bytes=1 << 20)
# As root the weaker modes change the user, who may not be allowed to read this interpreter.
READABLE_PYTHON = "/usr/bin/python3" if os.geteuid() == 0 else ""


@pytest.fixture(scope="module", params=["bubblewrap", "landlock", "rlimits"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    mode: Mode = request.param
    python = "" if mode == "bubblewrap" else READABLE_PYTHON
    if python and not Path(python).exists():
        pytest.skip(f"as root this mode needs {python}")
    sandbox = Sandbox(SandboxSettings(mode=mode, limits=SMALL, python=python))
    yield sandbox
    sandbox.close()


def run(sandbox: Sandbox, program: str, stdin: str = "") -> str:
    outcome = sandbox.run(Job(files={"main.py": program}, stdin=stdin))
    return (outcome.stdout + outcome.stderr).decode()


def test_a_program_has_its_input_its_files_and_a_clean_environment(sandbox: Sandbox) -> None:
    job = Job(
        files={"main.py": "print(input(), open('a/b.txt').read())", "a/b.txt": "é"}, stdin="in\n"
    )
    assert sandbox.run(job).stdout.decode() == "in é\n"
    names = run(sandbox, "import os; print(sorted(os.environ))")
    assert names == "['HOME', 'LANG', 'PATH', 'PYTHONUTF8', 'TMPDIR']\n"
    assert "1\n" in run(sandbox, "print(1); raise ValueError('why')")
    assert "ValueError: why" in run(sandbox, "raise ValueError('why')")


def test_limits_end_a_program(sandbox: Sandbox) -> None:
    endless = sandbox.run(Job(files={"main.py": "while True: pass"}))
    assert endless.timed_out
    assert endless.seconds < SMALL.wall_s + 1
    assert "MemoryError" in run(sandbox, "bytearray(1 << 28)")
    assert "Errno" in run(sandbox, "f = open('x', 'wb', 0)\nf.write(b'x' * 9999999)\nf.write(b'x')")
    loud = sandbox.run(Job(files={"main.py": "while True: print('x' * 9999)"}))
    assert loud.output_exceeded
    assert len(loud.stdout) == SMALL.output_bytes


_HUNGRY = """
import os, time
for i in range({children}):
    if os.fork() == 0:
        x = bytearray({mib} << 20)
        time.sleep({seconds})
        os._exit(0)
time.sleep({seconds} + 0.1)
print("done")
"""


def test_memory_is_limited_over_all_processes(sandbox: Sandbox) -> None:
    def hungry(children: int, mib: int, seconds: float) -> Outcome:
        text = _HUNGRY.format(children=children, mib=mib, seconds=seconds)
        return sandbox.run(Job(files={"main.py": text}))

    many = hungry(6, 60, 60)
    assert many.memory_exceeded
    assert not many.finished
    assert hungry(4, 5, 0.1).stdout == b"done\n"


def test_pages_that_processes_share_count_once(sandbox: Sandbox) -> None:
    if os.geteuid() != 0:
        pytest.skip("without privileges the kernel does not say what is shared")
    text = "x = bytearray(50 << 20)\n" + _HUNGRY.format(children=5, mib=1, seconds=0.1)
    assert sandbox.run(Job(files={"main.py": text})).stdout == b"done\n"


def test_folders_of_any_depth_are_removed(sandbox: Sandbox) -> None:
    deep = "import os\nfor i in range(2500): os.mkdir('d'); os.chdir('d')\nos.chmod('.', 0)"
    sandbox.run(Job(files={"main.py": deep + "\nopen('/dev/null')"}))
    assert run(sandbox, "import os; print(os.listdir('.'))") == "['main.py']\n"


def test_what_a_program_left_goes_when_the_sandbox_is_closed() -> None:
    if READABLE_PYTHON and not Path(READABLE_PYTHON).exists():
        pytest.skip(f"as root this mode needs {READABLE_PYTHON}")
    settings = SandboxSettings(mode="rlimits", limits=SMALL, python=READABLE_PYTHON)
    sandbox = Sandbox(settings)
    # Too many to remove in the time after a program, few enough to be soon removed in the end.
    deep = "import os\nfor i in range(20_000): os.mkdir('d'); os.chdir('d')"
    sandbox.run(Job(files={"main.py": deep}))
    folder = Path(sandbox._folder)
    assert folder.is_dir()
    sandbox.close()
    assert not folder.exists()


def test_a_fork_bomb_is_ended_whole(sandbox: Sandbox) -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    before = {process.pid for process in psutil.process_iter()}
    outcome = sandbox.run(Job(files={"main.py": bomb}))
    assert outcome.timed_out
    assert outcome.seconds < SMALL.wall_s + 1
    time.sleep(0.2)
    # Nothing that it started has become somebody else's child: the sandbox's are below us.
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    own = sandbox.run(Job(files={"main.py": "import os; print(os.getuid())"})).stdout
    left = []
    for process in psutil.process_iter(["pid", "uids"]):
        uids = process.info["uids"]
        if uids and uids.real == int(own) != os.getuid() and process.pid not in ours | before:
            left.append(process)
    assert left == []


def test_nothing_is_left_for_the_next_program_or_on_the_host(sandbox: Sandbox) -> None:
    before = set(psutil.Process().children(recursive=True))
    run(
        sandbox,
        "import os, time\nopen('left', 'w').write('x')\nif os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)",
    )
    # The keeper reports when nothing is left, and then ends too.
    deadline = time.monotonic() + 1
    while set(psutil.Process().children(recursive=True)) - before:
        assert time.monotonic() < deadline
    assert run(sandbox, "import os; print(os.listdir('.'))") == "['main.py']\n"


def test_no_network_no_tracing_and_no_signals_to_others(sandbox: Sandbox) -> None:
    assert "PermissionError" in run(sandbox, "import socket; socket.socket()")
    trace = "import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))"
    assert run(sandbox, trace) == "-1\n"
    kill = f"import os\nos.kill({os.getpid()}, 0)"
    assert "Error" in run(sandbox, kill)


def test_a_sandbox_that_was_killed_is_replaced(sandbox: Sandbox) -> None:
    assert sandbox._process is not None
    sandbox._process.kill()
    sandbox._process.wait()
    assert run(sandbox, "print(2)") == "2\n"


def stop(process: psutil.Process) -> bool:
    """False if it has ended: the keeper of the last program does, after its report."""
    try:
        process.suspend()
    except psutil.NoSuchProcess:
        return False
    return True


def test_a_sandbox_that_dies_before_it_takes_the_program_is_not_the_programs_result(
    sandbox: Sandbox,
) -> None:
    run(sandbox, "print(1)")  # it is there
    assert sandbox._process is not None
    started = psutil.Process(sandbox._process.pid)
    # What is sent now is never read: the connection ends with a reset.
    family = [process for process in [started, *started.children(recursive=True)] if stop(process)]

    def end_all() -> None:
        for process in reversed(family):
            with suppress(psutil.NoSuchProcess):  # they end with each other
                process.kill()

    killer = Timer(0.3, end_all)
    killer.start()
    with pytest.raises(SandboxDiedError):
        run(sandbox, "print(1)")
    killer.join()
    assert run(sandbox, "print(2)") == "2\n"


def test_files_of_the_host_are_out_of_reach(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for mode in ("bubblewrap", "landlock"):
        python = "" if mode == "bubblewrap" else READABLE_PYTHON
        sandbox = Sandbox(SandboxSettings(mode=mode, limits=SMALL, python=python))
        assert "Error" in run(sandbox, f"print(open({str(secret)!r}).read())")
        assert "Error" in run(sandbox, "print(open('/etc/passwd').read())")
        sandbox.close()


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that every user may read, which those of pytest are not."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_can_use_it(readable: Path) -> None:
    root = Path(launch.__file__).parents[2]
    target = readable / "rewards"
    shutil.copytree(root / "rewards/sandbox", target / "sandbox")
    (target / "__init__.py").touch()
    (readable / "rlstack").mkdir()
    shutil.copy(root / "rlstack/errors.py", readable / "rlstack")
    code = (
        "from rewards.sandbox.sandbox import *; from rewards.sandbox.job import *\n"
        "s = Sandbox(SandboxSettings(limits=Limits(processes=4)))\n"
        "program = 'import os\\nn = 0\\ntry:\\n    while True:\\n        if os.fork() == 0: "
        "os.read(0, 1); os._exit(0)\\n        n += 1\\nexcept OSError: print(n)'\n"
        "print(s.run(Job(files={'main.py': program})).stdout)"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code],
        env={"PYTHONPATH": str(readable), "PATH": os.environ["PATH"]},
        cwd="/",
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "b'3\\n'\n", done.stderr


def test_what_is_missing_is_named_with_the_weaker_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RewardError, match=r"no `bwrap`.*apt-get install bubblewrap.*mode=landlock"):
        Sandbox(SandboxSettings(python=sys.executable))
    with pytest.raises(RewardError, match="python 'nowhere/python' does not exist"):
        Sandbox(SandboxSettings(python="nowhere/python"))


def test_a_refused_namespace_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'Creating new namespace failed' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RewardError, match=r"namespace failed.*max_user_namespaces.*mode=rlimits"):
        Sandbox(SandboxSettings(python=sys.executable))
