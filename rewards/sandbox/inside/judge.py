"""An assert program, with the function under test in another sandbox.

The tests see a function of the right name. A call travels as a line of plain data and its result
comes back as one, so that nothing of the program under test ever exists in this process.
"""

import builtins
import json
import os
import types

import counting
import values

CALLS_OUT, RESULTS_IN, VERDICT = 3, 4, 5
# Raised by a function, these would end the loop, `map` or generator of the tests that calls it:
# as if the rest of the tests had passed.
_ENDS_LOOPS = (StopIteration, StopAsyncIteration)


def run(
    tests_path: str,
    prelude_path: str,
    entry_point: str,
    max_reply_bytes: int,
    *,
    count_asserts: bool,
) -> None:
    """Run prelude and tests, and write the verdict: {"verdict": passed | failed | broken, ...}.

    A space comes before it once the function has been called. With `count_asserts` the tests go on
    after an assert that fails, and the verdict has the `share` of those that passed: 0 if the tests
    did not get to their end.
    """
    module = types.ModuleType("__main__")
    candidate = _Candidate(entry_point, max_reply_bytes)
    tally = counting.Tally(lambda: candidate.num_calls)
    name = entry_point.split(".")[-1]
    names: dict[str, object] = {name: candidate, "candidate": candidate, counting.NAME: tally}
    sources: dict[str, bytes] = {}
    for path in (prelude_path, tests_path):
        with open(path, "rb") as file:
            sources[path] = file.read()
        # Where files are not hidden, the program under test may find them.
        os.unlink(path)
    try:
        for path, source in sources.items():
            if count_asserts and path == tests_path:
                code = counting.compile_counted(source, path, tally)
            else:
                code = compile(source, path, "exec", dont_inherit=True)
            # The prelude may hold an empty function of this name: the real one replaces it.
            exec_into(code, module, names)
        check = module.__dict__.get("check")
        if isinstance(check, types.FunctionType):
            check(candidate)
    except AssertionError as error:
        _report("failed", f"an assert failed {str(error)[:200]}".strip())
    except _ArgumentError as error:
        _report("broken", str(error))
    except BaseException as error:  # noqa: BLE001
        # An error before the first call is the tests' own.
        verdict = "failed" if candidate.num_calls else "broken"
        _report(verdict, f"{type(error).__name__}: {str(error)[:200]}")
    if not candidate.num_calls:
        _report("broken", f"the tests never call {name}")
    if tally.num_failed:
        _report("failed", f"asserts that failed: {tally.num_failed}", share=tally.share())
    _report("passed", "")


def exec_into(code: types.CodeType, module: types.ModuleType, names: dict[str, object]) -> None:
    """Run `code` in `module`, the names set before and after it."""
    module.__dict__.update(names)
    exec(code, module.__dict__)
    module.__dict__.update(names)


class _ArgumentError(BaseException):
    """The tests pass something that cannot travel: they cannot be run here."""


class _Candidate:
    """The function under test."""

    def __init__(self, entry_point: str, max_reply_bytes: int) -> None:
        self.__name__ = entry_point
        self._max_reply_bytes = max_reply_bytes
        self.num_calls = 0
        self._results = open(RESULTS_IN, "rb", closefd=False)  # noqa: SIM115

    def __call__(self, *args: object, **kwargs: object) -> object:
        try:
            call = values.dumps([args, kwargs])
        except values.UnsupportedValueError as error:
            raise _ArgumentError(f"an argument of the tests: {error}") from None
        if not self.num_calls:
            os.write(VERDICT, b" ")
        self.num_calls += 1
        reply = self._ask(call + b"\n")
        if len(reply) == 1:
            return reply[0]
        kind = getattr(builtins, str(reply[0]), None)
        # Tests may expect a ValueError; a made-up one must not end them as if they had passed.
        if (
            isinstance(kind, type)
            and issubclass(kind, Exception)
            and not issubclass(kind, _ENDS_LOOPS)
        ):
            try:
                error = kind(str(reply[1]))
            except TypeError:
                error = RuntimeError(str(reply[0]))
            raise error
        raise RuntimeError(f"{str(reply[0])[:50]}: {str(reply[1])[:200]}")

    def _ask(self, line: bytes) -> list[object]:
        try:
            while line:
                line = line[os.write(CALLS_OUT, line) :]
            answer = self._results.readline(self._max_reply_bytes)
            reply = values.loads(answer)
        except (OSError, ValueError, MemoryError) as error:
            _report("failed", f"the program gave no result: {type(error).__name__}")
            raise
        if not answer.endswith(b"\n") or type(reply) is not list or len(reply) not in (1, 2):
            _report("failed", "the program gave no result")
        return reply


def _report(verdict: str, message: str, share: float = 0.0) -> None:
    report = {"verdict": verdict, "message": message, "share": share}
    os.write(VERDICT, json.dumps(report).encode())
    os._exit(0)
