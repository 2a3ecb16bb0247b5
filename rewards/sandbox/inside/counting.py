"""Assert programs that go on after a failed assert, so that a share of the asserts can be told.

Every assert statement weighs the same. One that runs several times counts by the share of its runs
that passed: a loop over what the program returned cannot be made to outweigh the rest.
"""

import ast
import types
from collections.abc import Callable

NAME = "@tally"
"""Of the tally among the globals of the tests; no source can write it."""


class Tally:
    """What became of each assert statement of the tests."""

    errors = Exception

    def __init__(self, num_calls: Callable[[], int]) -> None:
        """num_calls: of the program under test, so far."""
        self._num_calls = num_calls
        self._passed: list[int] = []
        self._failed: list[int] = []

    @property
    def num_failed(self) -> int:
        """Runs of asserts that failed."""
        return sum(self._failed)

    def add(self) -> int:
        """Make room for one more statement; its number."""
        self._passed.append(0)
        self._failed.append(0)
        return len(self._passed) - 1

    def record(self, number: int, truth: object) -> None:
        """One run of a statement; `truth` is what it asserts."""
        (self._passed if truth else self._failed)[number] += 1

    def raised(self, number: int) -> bool:
        """What it asserts raised. True if that is the tests' own error: nothing was called yet."""
        if not self._num_calls():
            return True
        self._failed[number] += 1
        return False

    def share(self) -> float:
        """Of the statements; one that was never reached counts as failed."""
        runs = zip(self._passed, self._failed, strict=True)
        return sum(p / (p + f) for p, f in runs if p + f) / len(self._passed)


def compile_counted(source: bytes, path: str, tally: Tally) -> types.CodeType:
    """`source` compiled, its asserts recorded in `tally`, which is its global `NAME`.

    Left as they are: asserts in the body of `try` or `with`, whose failure may be expected there,
    and those of a true constant, which any program passes. Raises SyntaxError.
    """
    tree = _Counted(tally).visit(ast.parse(source, path))
    return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Counted(ast.NodeTransformer):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """`assert x` becomes: try: tally.record(n, x), except errors: if tally.raised(n): raise."""
        if isinstance(node.test, ast.Constant) and node.test.value:
            return node
        number = ast.Constant(self._tally.add())
        record = ast.Expr(ast.Call(_of_tally("record"), [number, node.test], []))
        own = ast.If(ast.Call(_of_tally("raised"), [number], []), [ast.Raise()], [])
        handler = ast.ExceptHandler(_of_tally("errors"), None, [own])
        return ast.copy_location(ast.Try([record], [handler], [], []), node)

    def visit_Try(self, node: ast.Try) -> ast.AST:
        """Only what its handlers do not guard."""
        if not node.handlers:
            return self.generic_visit(node)
        guarded, node.body = node.body, []
        self.generic_visit(node)
        node.body = guarded
        return node

    def visit_TryStar(self, node: ast.TryStar) -> ast.AST:
        """As `try`."""
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        """It may swallow what is raised in it."""
        return node


def _of_tally(attribute: str) -> ast.Attribute:
    return ast.Attribute(ast.Name(NAME, ast.Load()), attribute, ast.Load())
