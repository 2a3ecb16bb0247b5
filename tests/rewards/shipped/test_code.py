"""The reward `code`: the three ways to judge, what programs may look like, broken rows."""

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.sandbox.inside import values
from rewards.shipped.code import Code, extract_program, same
from rlstack.errors import RewardError
from rlstack.types import RewardRequest

HUMANEVAL = Path(__file__).parents[3] / "../shared/data/humaneval/HumanEval.jsonl.gz"
ADD = {
    "entry_point": "add",
    "cases": [{"args": [1, 2], "expected": 3}, {"args": {"a": 2, "b": 2}, "expected": 4}],
}


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    reward = Code(time_limit_s=3)
    yield reward
    reward.close()


@pytest.fixture(scope="module")
def partial() -> Iterator[Code]:
    reward = Code(partial_credit=True, time_limit_s=3)
    yield reward
    reward.close()


def judge(reward: Code, response: str, checks: dict[str, Any]) -> float | None:
    return reward(RewardRequest(prompt="", response=response, metadata={"code": checks})).value


def test_programs_are_judged_by_what_they_print(code: Code) -> None:
    checks = {"cases": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 5", "stdout": "10"}]}
    right = "a, b = map(int, input().split())\nprint(a + b)"
    assert judge(code, f"Here:\n```python\n{right}\n```\nDone.", checks) == 1.0
    assert judge(code, right, checks) == 1.0
    assert judge(code, right.replace("+", "*"), checks) == 0.0
    assert judge(code, right + "\nraise SystemExit(1)", checks) == 0.0
    as_answer = RewardRequest(prompt="", response=right, answer=json.dumps(checks))
    assert code(as_answer).value == 1.0


def test_functions_are_judged_by_what_they_return(code: Code) -> None:
    assert judge(code, "def add(a, b): return a + b", ADD) == 1.0
    assert judge(code, "def add(a, b): return 3", ADD) == 0.0
    method = "class Solution:\n    def add(self, a, b): return a + b"
    assert judge(code, method, {**ADD, "entry_point": "Solution.add"}) == 1.0


def test_asserts_may_expect_errors_and_use_the_prelude(code: Code) -> None:
    checks = {
        "entry_point": "root",
        "prelude": "import math\ndef square(x): return x * x\ndef root(x):\n    '''Of x.'''\n",
        "tests": "def check(candidate):\n    assert square(candidate(9)) == 9\n"
        "    assert candidate((4,)) == {2.0}\n"
        "    try: candidate(-1)\n    except ValueError: pass\n    else: assert False\n",
    }
    body = "    if isinstance(x, tuple): return {math.sqrt(x[0])}\n    return math.sqrt(x)\n"
    assert judge(code, body, checks) == 1.0
    assert judge(code, body.replace("{math", "[math").replace("])}", "])]"), checks) == 0.0
    # Its own `square` is not the one that the tests use.
    assert judge(code, "def square(x): return 9\ndef root(x): return 0", checks) == 0.0


def test_partial_credit_for_cases(partial: Code) -> None:
    assert judge(partial, "def add(a, b): return 3", ADD) == 0.5
    checks = {"cases": [{"stdin": str(n), "stdout": str(n)} for n in range(4)]}
    assert judge(partial, "n = int(input())\nprint(min(n, 2))", checks) == 0.75


DOUBLE = (
    "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 4\n"
    "    for n in range(4):\n        assert candidate(n) == 2 * n\n    assert True, 'a gift'\n"
    "check(double)\n"
)


@pytest.mark.parametrize(
    ("program", "share"),
    [
        ("def double(n): return 2 * n", 1.0),
        ("def double(n): return 2", (1 + 0 + 1 / 4) / 3),
        ("def double(n): return 2 * n if n < 3 else None", (1 + 1 + 3 / 4) / 3),
        ("def double(n): return [2, 4, 6][n - 1]", (1 + 1 + 3 / 4) / 3),
        ("def double(n):\n    if n > 1: raise IndexError\n    return 2 * n", (1 + 0 + 2 / 4) / 3),
        ("def double(n): return 'ab'", 0.0),
    ],
)
def test_partial_credit_for_asserts(partial: Code, program: str, share: float) -> None:
    checks = {"entry_point": "double", "tests": DOUBLE.removesuffix("check(double)\n")}
    assert judge(partial, program, checks) == pytest.approx(share)
    # At the top level, as MBPP has them, it is the same.
    lines = [line.removeprefix("    ") for line in DOUBLE.splitlines()[1:-1]]
    top = {**checks, "tests": "\n".join(lines)}
    assert judge(partial, program, top) == pytest.approx(share)


@pytest.mark.parametrize(
    ("tests", "share"),
    [
        # An assert that may fail: it is no reason to earn less, and no reason to earn.
        ("try: assert f(0) == 1\nexcept AssertionError: assert f(0) == 0", 1.0),
        ("with suppress(AssertionError): assert f(0) == 1", 1.0),
        ("try: f(-1)\nexcept ValueError: pass\nelse: assert False", 1.0),
        ("assert f(1) == 1\ntry: f(2)\nexcept ValueError: pass\nelse: assert False", 0.5),
        ("assert f(1) == 1\ntry: assert f(1) == 2\nfinally: assert f(3) == 3", 2 / 3),
        ("assert f(1) == 1\ntry: assert f(1) == 2\nexcept ValueError: pass", 0.0),
        ("assert (x := f(3)) == 3\nassert x == 4", 0.5),
        # Never reached, and so not passed.
        ("assert f(1) == 1\nassert f(1) == 2\nif f(2) == 3: assert f(3) == 3", 1 / 3),
        # Nor does what follows an error outside an assert, or time, leave anything.
        ("assert f(1) == 1\nx = f(-1)\nassert f(1) == 1", 0.0),
        ("assert f(1) == 1\nwhile True: pass", 0.0),
    ],
)
def test_what_is_counted(tests: str, share: float) -> None:
    program = "def f(n):\n    if n < 0: raise ValueError\n    return n"
    prelude = "from contextlib import suppress\n"
    reward = Code(partial_credit=True, time_limit_s=1)
    checks = {"entry_point": "f", "prelude": prelude, "tests": tests}
    assert judge(reward, program, checks) == pytest.approx(share)
    if share in (0.0, 1.0):
        whole = Code(time_limit_s=1)
        assert judge(whole, program, checks) == share
        whole.close()
    reward.close()


@pytest.mark.skipif(not shutil.which("awk"), reason="needs awk")
def test_a_program_in_another_language() -> None:
    awk = shutil.which("awk") or ""
    reward = Code(command=(awk, "-f", "main.awk"), file_name="main.awk", readable=(awk,))
    checks = {"cases": [{"stdin": "3 4\n", "stdout": "7"}]}
    assert judge(reward, "{ print $1 + $2 }", checks) == 1.0
    assert judge(reward, "{ print $1 * $2 }", checks) == 0.0
    with pytest.raises(RewardError, match="needs Python"):
        judge(reward, "", ADD)
    reward.close()


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({}, r"Give metadata\['code'\]"),
        ({"cases": []}, "at least 1 item"),
        ({"entry_point": "f", "tests": "def check(candidate): 1 / 0"}, "never|ZeroDivisionError"),
        ({"entry_point": "f", "tests": "assert 1 / 0\nf()"}, "ZeroDivisionError"),
        ({"entry_point": "f", "tests": "x = 1"}, "never call f"),
        ({"entry_point": "f", "tests": "def ("}, "SyntaxError"),
        ({"entry_point": "f", "tests": "f(object())"}, "argument of the tests"),
    ],
)
def test_broken_rows_are_errors_and_not_zeros(
    code: Code, partial: Code, checks: dict[str, Any], message: str
) -> None:
    for reward in (code, partial):
        with pytest.raises(RewardError, match=message):
            judge(reward, "def f(*a): return 1", checks)


def test_rows_without_tests(code: Code) -> None:
    with pytest.raises(RewardError, match="no cases or tests"):
        code(RewardRequest(prompt="", response=""))
    with pytest.raises(RewardError, match="`answer` is not JSON"):
        code(RewardRequest(prompt="", response="", answer="42"[:1] + "x"))


def test_the_last_fenced_block_is_the_program() -> None:
    assert extract_program("```\na\n```\nor\n~~~py\n  b\n~~~\n") == "  b\n"
    assert extract_program("````\n```\nx\n```\n````") == "```\nx\n```\n"
    assert extract_program("    return 1") == "    return 1"


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        ((1, [2.0]), [1, [2]], True),
        (1.0000001, 1, True),
        (True, 1, False),
        (1, True, False),
        ({1: "a"}, {"1": "a"}, True),
        ({1: "a", "1": "a"}, {"1": "a"}, False),
        ("1", 1, False),
        (float("nan"), 1.0, False),
        (float("inf"), 1.0, False),
        (10**400, 1.5, False),
        (None, None, True),
        ({1}, [1], False),
    ],
)
def test_same(found: object, expected: object, equal: bool) -> None:
    assert same(found, expected, 1e-6) is equal


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text() | st.tuples(st.text()), inner)
        | st.frozensets(st.integers() | st.text()).map(set)
    ),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_values_travel_unchanged(value: object) -> None:
    found = values.loads(values.dumps(value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"~":"x","v":1}', b'{"~":"set","v":[[]]}', b"[" * 9999, b"1" * 9999]
)
def test_lines_that_are_no_values(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        values.loads(line)


def test_humaneval_solutions_pass_and_mutants_fail(code: Code, partial: Code) -> None:
    if not HUMANEVAL.exists():
        pytest.skip(f"HumanEval is not at {HUMANEVAL.resolve()}")
    with gzip.open(HUMANEVAL, "rt") as file:
        rows = [json.loads(line) for line in file]
    wrong: list[str] = []
    num_mutants = 0
    for row in rows:
        checks = {
            "tests": row["test"],
            "entry_point": row["entry_point"],
            "prelude": row["prompt"],
        }
        solution = row["canonical_solution"]
        if judge(code, solution, checks) != 1.0:
            wrong.append(f"{row['task_id']}: the solution fails")
        if judge(partial, solution, checks) != 1.0:
            wrong.append(f"{row['task_id']}: the solution earns only a part")
        # Wrong wherever tests look: nothing, the opposite, another type.
        last = solution.rstrip().rpartition("return ")
        mutants = ["    return None\n"]
        if last[1] and re.fullmatch(r"[^\n]*", last[2]):
            mutants.append(f"{last[0]}return not ({last[2]})\n")
        for mutant in mutants:
            num_mutants += 1
            if judge(code, mutant, checks) != 0.0:
                wrong.append(f"{row['task_id']}: a mutant passes: {mutant}")
            if (judge(partial, mutant, checks) or 0.0) >= 1.0:
                wrong.append(f"{row['task_id']}: a mutant earns all: {mutant}")
    assert len(rows) == 164
    assert num_mutants > 100
    assert wrong == []
