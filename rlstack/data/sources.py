"""From a configured source to examples, one row at a time, each with the place it came from.

Locations are `path:line` for JSONL and `path[index]` (from 0, as in `dataset[index]`) for the rest.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rlstack.config.data import FileSource, HuggingFaceSource, ReasoningGymSource, SourceConfig
from rlstack.data.readers import Row, generate_puzzles, read_huggingface, read_jsonl, read_parquet
from rlstack.data.schemas import RowKind, RowRules, to_example
from rlstack.data.values import RowError
from rlstack.errors import DataError
from rlstack.types import Example, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedExample:
    """An example and the place it was read from."""

    location: str
    example: Example


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be used: where it is, why, and the fix."""

    location: str
    error: RowError

    def __str__(self) -> str:
        return f"{self.location}: {self.error}"


def source_name(source: SourceConfig) -> str:
    """The configured name, or that of the file, dataset or task."""
    if source.name is not None:
        return source.name
    if isinstance(source, FileSource):
        return Path(source.path).stem
    if isinstance(source, HuggingFaceSource):
        return Path(source.path).name
    return source.task


def read_examples(
    source: SourceConfig, *, id_prefix: str | None = None, kind: RowKind = RowKind.PROMPT
) -> Iterator[LocatedExample | BadRow]:
    """Every row of the source; `id_prefix` of the example ids is the source's name by default.

    Raises:
        DataError: if the source itself cannot be read; the message names it and the fix.
    """
    prefix = id_prefix or source_name(source)
    if isinstance(source, ReasoningGymSource):
        for index, puzzle in generate_puzzles(source):
            example = _puzzle_example(puzzle, source, example_id=f"{prefix}:{index}")
            yield LocatedExample(location=f"{source.task}[{index}]", example=example)
        return
    rules = RowRules(
        name=prefix,
        default_data_source=source_name(source),
        columns=source.columns,
        answer_pattern=_compile(source),
        data_source=source.name,
        reward=source.reward,
    )
    if isinstance(source, HuggingFaceSource):
        rows, location = read_huggingface(source), "{path}[{number}]"
    elif source.path.endswith(".jsonl"):
        rows, location = read_jsonl(_existing_file(source)), "{path}:{number}"
    elif source.path.endswith(".parquet"):
        rows, location = read_parquet(_existing_file(source)), "{path}[{number}]"
    else:
        raise DataError(
            f"{source.path}: unknown kind of file; expected a name that ends in .jsonl or .parquet"
        )
    for number, row in islice(rows, source.limit):
        place = location.format(path=source.path, number=number)
        if isinstance(row, RowError):
            yield BadRow(location=place, error=row)
            continue
        try:
            example = to_example(row, number=number, rules=rules, kind=kind)
        except RowError as error:
            yield BadRow(location=place, error=error)
        else:
            yield LocatedExample(location=place, example=example)


def _compile(source: FileSource | HuggingFaceSource) -> re.Pattern[str] | None:
    if source.answer_pattern is None:
        return None
    where = f"{source.path}: answer_pattern '{source.answer_pattern}'"
    try:
        pattern = re.compile(source.answer_pattern)
    except re.error as error:
        raise DataError(f"{where} is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise DataError(f"{where} has no group; put the answer in parentheses, as in '#### (.*)'")
    return pattern


def _existing_file(source: FileSource) -> Path:
    path = Path(source.path)
    if not path.is_file():
        raise DataError(
            f"{source.path}: no such file (looked for {path.absolute()}); correct the path"
        )
    return path


def _puzzle_example(puzzle: Row, source: ReasoningGymSource, *, example_id: str) -> Example:
    """A puzzle as an example; its numbers (sizes, difficulty) are metadata of their own.

    The entry is kept as generated: some verifiers compare its tuples, so JSON's lists would fail.
    """
    details = puzzle["metadata"]
    numbers = {name: value for name, value in details.items() if isinstance(value, int | float)}
    entry = {"question": puzzle["question"], "answer": puzzle["answer"], "metadata": details}
    return Example(
        example_id=example_id,
        data_source=source_name(source),
        messages=(Message(role="user", content=puzzle["question"]),),
        answer=puzzle["answer"],
        response=puzzle["answer"],
        reward=source.reward or "reasoning_gym",
        metadata={**numbers, "reasoning_gym": {"task": source.task, "entry": entry}},
    )
