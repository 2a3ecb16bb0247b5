"""With partial credit no program earns more than the asserts that it really passes."""

from collections.abc import Iterator

import pytest

from rewards.shipped.code import Code
from rlstack.types import RewardRequest

TESTS = """
def check(candidate):
    assert candidate(1) == 1
    assert candidate(2) == 4
    assert candidate(3) == 9
    for value in candidate(4):
        assert value == 16
"""
PASSES_ONE = "def solve(n): return 1\n"
ATTACKS = {
    "nothing but the truth": (PASSES_ONE, 0.0),  # iterating over 1 ends the tests
    "a list for the loop": ("def solve(n): return 1 if n < 4 else [0]", 0.25),
    "an empty loop is no pass": ("def solve(n): return 1 if n < 4 else []", 0.25),
    "a long loop weighs no more": ("def solve(n): return 1 if n < 4 else [16] * 100_000", 0.5),
    "exit at import": (PASSES_ONE + "import sys; sys.exit(0)", 0.0),
    "hard exit at import": (PASSES_ONE + "import os; os._exit(0)", 0.0),
    "hard exit after the first": (
        "import os\ndef solve(n):\n    if n > 1: os._exit(0)\n    return 1",
        0.0,
    ),
    "exit after the first, outside an assert": (
        "def solve(n):\n    if n > 3: raise SystemExit(0)\n    return 1",
        0.0,
    ),
    "exit in an assert": (
        "def solve(n):\n    if n in (2, 3): raise SystemExit(0)\n    return 1 if n == 1 else []",
        0.25,
    ),
    "what asserts raise": (
        "def solve(n):\n    if n > 1: raise AssertionError\n    return 1",
        0.0,
    ),
    "the end of a loop": ("def solve(n):\n    if n > 1: raise StopIteration\n    return 1", 0.0),
    "an exception outside Exception": (
        "def solve(n):\n    if n > 1: raise KeyboardInterrupt\n    return 1",
        0.0,
    ),
    "a generator that never ends": (
        "def solve(n):\n    if n < 4: return 1\n    while True: pass",
        0.0,
    ),
    "tracing": (
        "import sys\ndef trace(frame, event, arg):\n    frame.f_trace_lines = False\n"
        "    return trace\nsys.settrace(trace)\nsys.setprofile(trace)\n"
        "def solve(n): return 1 if n < 4 else []",
        0.25,
    ),
    "another AssertionError": (
        "import builtins\nbuiltins.AssertionError = type('Quiet', (BaseException,), {})\n"
        "builtins.Exception = BaseException\n"
        "def solve(n): return 1 if n < 4 else []",
        0.25,
    ),
    "its own tally": (
        "import counting\ncounting.Tally.share = lambda self: 1.0\n"
        "counting.Tally.num_failed = 0\nglobals()['@tally'] = counting.Tally(int)\n"
        "def solve(n): return 1 if n < 4 else []",
        0.25,
    ),
    "a verdict of its own": (
        'import os\nreport = b\'{"verdict": "failed", "message": "", "share": 1.0}\'\n'
        "for fd in range(5, 256):\n    try: os.write(fd, report)\n    except OSError: pass\n"
        "def solve(n): return 1 if n < 4 else []",
        0.25,
    ),
    "a verdict for an answer": (
        "import os\ndef solve(n):\n"
        '    os.write(4, b\'{"verdict": "failed", "message": "", "share": 1.0}\\n\')',
        0.0,
    ),
    "objects equal to everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def solve(n): return Any(1) if n < 4 else [Any(1)]",
        0.25,
    ),
}


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    reward = Code(time_limit_s=1, memory_mib=128, partial_credit=True)
    yield reward
    reward.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_no_program_earns_more_than_it_passes(code: Code, name: str) -> None:
    program, share = ATTACKS[name]
    checks = {"entry_point": "solve", "tests": TESTS}
    score = code(RewardRequest(prompt="", response=program, metadata={"code": checks}))
    assert score.value == share


def test_the_honest_solution_earns_all(code: Code) -> None:
    checks = {"entry_point": "solve", "tests": TESTS}
    program = "def solve(n): return n * n if n < 4 else [16, 16]"
    score = code(RewardRequest(prompt="", response=program, metadata={"code": checks}))
    assert score.value == 1.0
