"""Reward `code`: the program in the response does what the row's cases or tests ask.

The program runs in the sandbox and never meets an expected result: outputs are compared here, and
an assert program runs in a second sandbox that calls the program's function through a pipe.

The row says how it is judged, as a mapping in `metadata["code"]` or as JSON in `answer`:

    {"cases": [{"stdin": "1 2", "stdout": "3"}, ...]}                     a program
    {"entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}, ...]}   a function
    {"entry_point": "add", "tests": "def check(candidate): assert ..."}   a function (HumanEval)

`args` may be an object of named arguments. `prelude` (source; HumanEval's `prompt`) goes before the
program, which may also be just the rest of it, and before the tests. `entry_point` may be
`Class.method`. JSON knows no tuples: an expected list equals a tuple.

With `partial_credit` tests go on after an assert that fails or raises, and earn the share of their
assert statements that passed: one that runs several times by the share of its runs, one that was
never reached as failed (unless all that ran passed, which earns 1). `assert True` is not counted.
Asserts in the body of a `try` or `with` keep their meaning and are not counted. Whatever else ends
the tests before their end (an error outside an assert, a program that exits, time) earns 0.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from rewards.registry import register
from rewards.sandbox.inside import values
from rewards.sandbox.job import Job, Limits, Mode, Outcome, SandboxSettings
from rewards.sandbox.sandbox import Sandbox, SandboxDiedError
from rewards.shipped.code_checks import CHECKS, CallCase, Calls, Checks, InputCase, Programs, Tests
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

METADATA_KEY = "code"
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
_ATTEMPTS = 2


@register("code")
class Code:
    """1.0 if the program passes every case or assert, else 0.0; `partial_credit`: the share passed.

    The program is the last fenced block of the response, or the whole response without one. The
    value is None, with an error, if the row's own tests are broken or the sandbox failed.
    """

    def __init__(
        self,
        *,
        mode: Mode = "bubblewrap",
        time_limit_s: Annotated[float, Field(gt=0, le=3600)] = 5.0,
        memory_mib: Annotated[int, Field(ge=64)] = 512,
        processes: Annotated[int, Field(ge=1)] = 16,
        file_mib: Annotated[int, Field(ge=1)] = 16,
        output_kib: Annotated[int, Field(ge=1)] = 1024,
        partial_credit: bool = False,
        tolerance: Annotated[float, Field(ge=0)] = 1e-6,
        python: str = "",
        command: tuple[str, ...] = (),
        file_name: str = "main.py",
        readable: tuple[str, ...] = (),
    ) -> None:
        """Start the sandbox.

        mode: how programs are confined; see `rewards/sandbox/job.py`. Never weakened by itself.
        time_limit_s: seconds of wall clock for each run: a case with stdin, or all calls together.
        memory_mib: memory of all processes together, and address space of each. processes: with
            threads. file_mib: files written.
        output_kib: standard output and standard error, each; more is a failure.
        partial_credit: the share of the cases, or of the tests' assert statements, that pass.
        tolerance: relative and absolute, between an expected float and a returned one.
        python: interpreter of the programs; default: this one, without packages.
        command: runs the program in another language, e.g. `[/usr/bin/node, main.js]`; such a
            program is judged by stdin and stdout. file_name: what it is saved as.
        readable: folders and files that programs may read besides the interpreter and libraries.

        Raises:
            RewardError: if the machine lacks what `mode` needs.
        """
        limits = Limits(
            wall_s=time_limit_s,
            memory_bytes=memory_mib << 20,
            processes=processes,
            file_bytes=file_mib << 20,
            output_bytes=output_kib << 10,
        )
        self._settings = SandboxSettings(mode=mode, limits=limits, python=python, readable=readable)
        self._command = command
        self._file_name = file_name
        self._partial_credit = partial_credit
        self._tolerance = tolerance
        self._sandbox = Sandbox(self._settings)
        self._judge: Sandbox | None = None

    def __call__(self, request: RewardRequest) -> Score:
        """Judge one response.

        Raises:
            RewardError: if the row does not say how, or its own tests are broken.
            SandboxDiedError: if the sandbox failed twice.
        """
        checks = _checks(request)
        program = extract_program(request.response)
        for attempt in range(_ATTEMPTS):
            try:
                return Score(value=self._judged(checks, program))
            except SandboxDiedError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """End the sandboxes."""
        self._sandbox.close()
        if self._judge is not None:
            self._judge.close()

    def _judged(self, checks: Checks, program: str) -> float:
        prelude = checks.prelude
        source = prelude + ("\n" if prelude and not prelude.endswith("\n") else "") + program
        match checks:
            case Programs(cases=cases):
                return self._share(self._prints(source, case) for case in cases)
            case Calls():
                return self._share(self._returns(source, checks))
            case Tests():
                return self._passes(source, checks)

    def _share(self, passed: Any) -> float:
        """Of the cases that passed; stops at the first failure where only all of them count."""
        if not self._partial_credit:
            return float(all(passed))
        results = list(passed)
        return sum(results) / len(results)

    def _prints(self, source: str, case: InputCase) -> bool:
        kind: Literal["command", "python"] = "command" if self._command else "python"
        name = self._file_name if self._command else "main.py"
        command = self._command or ("main.py",)
        outcome = self._sandbox.run(
            Job(kind=kind, files={name: source}, stdin=case.stdin, command=command)
        )
        return outcome.finished and _lines(outcome.stdout) == _lines(case.stdout.encode())

    def _returns(self, source: str, checks: Calls) -> list[bool]:
        self._require_python("entry_point")
        calls = [
            ([], case.args) if isinstance(case.args, dict) else (case.args, {})
            for case in checks.cases
        ]
        outcome = self._sandbox.run(
            Job(
                kind="functions",
                files={"main.py": source},
                entry_point=checks.entry_point,
                calls=b"".join(values.dumps(list(call)) + b"\n" for call in calls),
            )
        )
        # A line that was not completed is no answer; neither is one beyond the last call.
        answers = outcome.results.split(b"\n")[:-1]
        if len(answers) > len(calls):
            answers = []
        answers += [b""] * (len(calls) - len(answers))
        return [
            not (outcome.timed_out or outcome.output_exceeded or outcome.memory_exceeded)
            and self._right(answer, case)
            for answer, case in zip(answers, checks.cases, strict=True)
        ]

    def _right(self, answer: bytes, case: CallCase) -> bool:
        try:
            reply = values.loads(answer)
            right = same(reply[0], case.expected, self._tolerance)
        except (ValueError, RecursionError, TypeError, LookupError):
            return False
        return type(reply) is list and len(reply) == 1 and right

    def _passes(self, source: str, checks: Tests) -> float:
        self._require_python("tests")
        if self._judge is None:
            self._judge = Sandbox(self._settings)
        entry_point = checks.entry_point
        program = Job(kind="functions", files={"main.py": source}, entry_point=entry_point)
        tests = Job(
            kind="judge",
            files={"main.py": checks.prelude, "tests.py": checks.tests},
            entry_point=entry_point,
            count_asserts=self._partial_credit,
        )
        ended, judged = self._sandbox.run_judged(program, tests, self._judge)
        spoiled = ended.output_exceeded or ended.memory_exceeded
        return 0.0 if spoiled else _verdict(judged)

    def _require_python(self, key: str) -> None:
        if self._command:
            raise RewardError(
                f"the row is judged by {key!r}, which needs Python, and reward 'code' has a "
                "`command`. Give the row cases with stdin and stdout, or remove `command`."
            )


def extract_program(response: str) -> str:
    """The last fenced block, or the whole response; indentation is kept."""
    blocks = _FENCE.findall(response)
    return blocks[-1][1] if blocks else response


def same(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether a returned value is the expected one, which came from JSON.

    Lists equal tuples, numbers equal within `tolerance`; a bool is not a number, and an object's
    keys equal the keys that JSON would have written.
    """
    if isinstance(expected, bool) or isinstance(found, bool):
        return found is expected
    if isinstance(expected, int | float) and isinstance(found, int | float):
        if isinstance(expected, int) and isinstance(found, int):
            return found == expected
        try:
            return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # an int beyond every float
            return False
    if isinstance(expected, list) and isinstance(found, list | tuple):
        return len(found) == len(expected) and all(
            same(a, b, tolerance) for a, b in zip(found, expected, strict=True)
        )
    if isinstance(expected, dict) and isinstance(found, dict):
        # JSON writes 1 as "1", True as "true".
        named = {key if isinstance(key, str) else json.dumps(key): v for key, v in found.items()}
        return (
            len(named) == len(found)
            and named.keys() == expected.keys()
            and all(same(named[key], item, tolerance) for key, item in expected.items())
        )
    return type(found) is type(expected) and found == expected


def _checks(request: RewardRequest) -> Checks:
    where = f"the row (data source {request.data_source!r})"
    data: Any = request.metadata.get(METADATA_KEY)
    if data is None and request.answer is not None:
        try:
            data = json.loads(request.answer)
        except ValueError as error:
            raise RewardError(f"{where}: `answer` is not JSON: {error}. {_FORM}") from None
    if not isinstance(data, Mapping):
        raise RewardError(f"{where} has no cases or tests. {_FORM}")
    try:
        return CHECKS.validate_python(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][1:])
        raise RewardError(f"{where}: {key}: {first['msg']}. {_FORM}") from None


_FORM = (
    f"Give metadata[{METADATA_KEY!r}], or JSON in `answer`: "
    '{"cases": [{"stdin", "stdout"}]}, {"entry_point", "cases": [{"args", "expected"}]} or '
    '{"entry_point", "tests"}.'
)


def _lines(text: bytes) -> list[bytes]:
    """Without white space at line ends and empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split(b"\n")]


def _verdict(judged: Outcome) -> float:
    """What the tests say; what ends them once they have called the program is its own doing."""
    if judged.timed_out or (judged.results and not judged.results.strip()):
        return 0.0
    try:
        verdict = json.loads(judged.results)
    except ValueError:
        reason = judged.stderr[-300:].decode(errors="replace")
        raise RewardError(f"the row's tests ended without a verdict: {reason}") from None
    if verdict["verdict"] == "broken":
        raise RewardError(f"the row's tests are broken: {verdict['message']}")
    return 1.0 if verdict["verdict"] == "passed" else verdict["share"]
