"""Files and libraries to raw rows, one at a time. Knows no schema.

A row is yielded as (number, columns): the line of a JSONL file, counted from 1, or the index of the
row, counted from 0. Each optional library is imported by the one function that needs it.
"""

# The libraries come without type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from rlstack.config.data import HuggingFaceSource, ReasoningGymSource
from rlstack.data.values import RowError, show
from rlstack.errors import DataError

Row = Mapping[str, Any]
NumberedRow = tuple[int, Row | RowError]
"""Line or index of a row, and its columns or what is wrong with it."""


def read_jsonl(path: Path) -> Iterator[NumberedRow]:
    """One JSON object a line; blank lines are passed over."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _parse_line(line)


def _parse_line(line: bytes) -> Row | RowError:
    try:
        # A byte-order mark is only ever in the first line; elsewhere utf-8-sig is utf-8.
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RowError("not UTF-8", f"{error.reason} at byte {error.start}; save as UTF-8")
    except json.JSONDecodeError as error:
        return RowError(
            "invalid JSON", f"{error.msg} at column {error.colno}; expected one object a line"
        )
    if not isinstance(row, dict):
        return RowError("not a JSON object", f'got {show(row)}; expected {{"prompt": ..., ...}}')
    return row


def read_parquet(path: Path) -> Iterator[NumberedRow]:
    """The rows of a Parquet file, batch by batch.

    Raises:
        DataError: if it is not one.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise _missing_package("pyarrow", where=str(path)) from error
    try:
        file = parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
    with file:
        batches = (batch.to_pylist() for batch in file.iter_batches())
        yield from enumerate(row for batch in batches for row in batch)


def read_huggingface(source: HuggingFaceSource) -> Iterator[NumberedRow]:
    """The rows of a dataset directory, or of a dataset of the hub if there is no such directory.

    Raises:
        DataError: if there is no such dataset, subset or split.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise _missing_package("datasets", where=source.path) from error
    if Path(source.path).is_dir():
        dataset = _load_directory(source)
    else:
        try:
            dataset = datasets.load_dataset(source.path, source.subset, split=source.split)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{source.path} (subset {source.subset}, split {source.split}): no such directory, "
                f"and loading it from the hub failed: {error}; correct path, subset or split"
            ) from error
    yield from enumerate(cast(Iterable[Row], dataset))


def _load_directory(source: HuggingFaceSource) -> Iterable[Row]:
    import datasets

    if source.subset is not None:
        raise DataError(
            f"{source.path}: a directory has no subsets; remove subset={source.subset} and give "
            "the directory of the one you want"
        )
    try:
        stored = datasets.load_from_disk(source.path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source.path}: not written by save_to_disk of datasets ({error}); for .jsonl and "
            ".parquet files use type: file"
        ) from error
    if isinstance(stored, datasets.DatasetDict):
        splits = {str(name): dataset for name, dataset in stored.items()}
    else:
        # A dataset without a name for its split is whichever split was asked for.
        splits = {source.split if stored.split is None else str(stored.split): stored}
    if source.split not in splits:
        raise DataError(
            f"{source.path}: no split '{source.split}'; set split to {' or '.join(sorted(splits))}"
        )
    return cast(Iterable[Row], splits[source.split])


def generate_puzzles(source: ReasoningGymSource) -> Iterator[tuple[int, Row]]:
    """The entries `{"question", "answer", "metadata"}` of a reasoning-gym task.

    Raises:
        DataError: if there is no such task or it refuses its parameters.
    """
    where = f"reasoning_gym task '{source.task}'"
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise _missing_package("reasoning-gym", where=where) from error
    if source.task not in DATASETS:
        close = get_close_matches(source.task, DATASETS)
        fix = f"did you mean {' or '.join(close)}?" if close else f"choose from {sorted(DATASETS)}"
        raise DataError(f"{where}: no such task; {fix}")
    try:
        puzzles = reasoning_gym.create_dataset(
            source.task, size=source.size, seed=source.seed, **source.params
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise DataError(f"{where}: it refuses params {source.params}: {error}") from error
    for index in range(source.size):
        yield index, puzzles[index]


def _missing_package(package: str, *, where: str) -> DataError:
    return DataError(f"{where}: needs the package {package}; pip install {package}")
