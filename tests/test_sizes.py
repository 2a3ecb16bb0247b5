"""Files and functions stay small enough to read in one go."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FOLDERS = ("rlstack", "workers", "rewards", "tools", "tests")
TABLES = {ROOT / "tests/rewards/attacks/programs.py"}
"""Data in Python's clothes: a longer table is no harder to read."""
FILES = [
    file
    for folder in FOLDERS
    for file in sorted((ROOT / folder).rglob("*.py"))
    if file not in TABLES
]


def long_functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and length of every function over the limit."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield node.name, num_lines


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_file_and_its_functions_are_short(file: Path) -> None:
    source = file.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert list(long_functions(source)) == []


def test_long_function_is_found() -> None:
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert list(long_functions(f"def f():\n{body}")) == [("f", MAX_FUNCTION_LINES + 1)]
