"""Configured sources to datasets, with an account of skipped rows; those of prompts."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlstack.config.data import DataConfig, SourceConfig
from rlstack.data.rendering import render_prompt
from rlstack.data.schemas import RowKind
from rlstack.data.sources import BadRow, LocatedExample, read_examples, source_name
from rlstack.data.tokenizer import Tokenizer
from rlstack.data.turns import encode_turn
from rlstack.data.values import RowError
from rlstack.errors import DataError
from rlstack.types import Example, Prompt

SHOWN_ROWS = 20
"""Bad rows that a message spells out; the others are counted."""

LONG_PROMPT = "prompt too long"
"""The reason that `data.on_long_prompt` decides about; `data.on_bad_row` decides about the rest."""


class Sample(Protocol):
    """What a dataset holds: prompts, demonstrations, preferences."""

    @property
    def prompt_id(self) -> str: ...

    @property
    def text(self) -> str:
        """The rendered prompt."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...


SampleT = TypeVar("SampleT", bound=Sample)
SampleT_co = TypeVar("SampleT_co", bound=Sample, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipReport:
    """Rows that were left out."""

    counts: Mapping[str, int]
    """Reason -> number of rows."""
    messages: tuple[str, ...]
    """The first of them, as `file:line: reason: fix`."""

    @property
    def num_rows(self) -> int:
        """Rows left out in all."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source(Generic[SampleT_co]):
    """The usable rows of one configured source; `weight` None: its number of rows."""

    name: str
    weight: float | None
    samples: tuple[SampleT_co, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset(Generic[SampleT_co]):
    """The usable rows of all sources."""

    sources: tuple[Source[SampleT_co], ...]
    skipped: SkipReport

    @property
    def prompts(self) -> tuple[SampleT_co, ...]:
        """All samples, source after source."""
        return tuple(chain.from_iterable(source.samples for source in self.sources))

    def summary(self, title: str) -> str:
        """One line: `training: 7,471 rows (gsm8k 7,471), 2 skipped (no answer 2)`."""
        parts = ", ".join(f"{source.name} {len(source.samples):,}" for source in self.sources)
        num_rows = sum(len(source.samples) for source in self.sources)
        line = f"{title}: {num_rows:,} rows" + (f" ({parts})" if parts else "")
        if not self.skipped.num_rows:
            return line
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.skipped.counts.items()))
        return f"{line}, {self.skipped.num_rows:,} skipped ({reasons})"


def load_prompts(
    sources: Sequence[SourceConfig], tokenizer: Tokenizer, *, config: DataConfig
) -> Dataset[Prompt]:
    """Read, render and tokenize the prompts of `sources` (`config.train` or `config.eval`).

    Raises:
        DataError: if a source cannot be read, or naming every bad row that `config` does not skip.
    """

    def build(example: Example) -> Prompt:
        return checked_prompt(example, tokenizer, config)

    return load_samples(sources, build, config=config)


def checked_prompt(example: Example, tokenizer: Tokenizer, config: DataConfig) -> Prompt:
    """The prompt of a row, rendered, if it is not too long."""
    prompt = render_prompt(example, tokenizer=tokenizer, system_prompt=config.system_prompt)
    check_prompt_length(len(prompt.token_ids), config)
    return prompt


def check_prompt_length(num_tokens: int, config: DataConfig) -> None:
    """Raise RowError if the prompt is too long."""
    if num_tokens > config.max_prompt_tokens:
        raise RowError(
            LONG_PROMPT,
            f"{num_tokens} tokens; data.max_prompt_tokens is {config.max_prompt_tokens}: "
            "raise it or set data.on_long_prompt=skip",
        )


def checked_turn(
    prompt: Prompt,
    response: str,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    name: str = "response",
) -> NDArray[np.int64]:
    """int64 [R]: see `encode_turn`, if it is not too long; `name` is the error's word for it."""
    token_ids = encode_turn(prompt, response, tokenizer=tokenizer)
    if len(token_ids) > max_tokens:
        raise RowError(
            f"{name} too long",
            f"{len(token_ids)} tokens with the end of sequence; max_response_tokens is "
            f"{max_tokens}: raise it or shorten the response",
        )
    return token_ids


@dataclass(slots=True)
class _BadRows:
    """Counts all bad rows and keeps the messages of the first."""

    counts: Counter[str] = field(default_factory=Counter[str])
    messages: list[str] = field(default_factory=list[str])

    def add(self, row: BadRow) -> None:
        self.counts[row.error.reason] += 1
        if len(self.messages) < SHOWN_ROWS:
            self.messages.append(str(row))


def load_samples(
    sources: Sequence[SourceConfig],
    build: Callable[[Example], SampleT],
    *,
    config: DataConfig,
    kind: RowKind = RowKind.PROMPT,
) -> Dataset[SampleT]:
    """What `build` makes of every row; it raises RowError for a bad one.

    Raises:
        DataError: if a source cannot be read, or naming every bad row that `config` does not skip.
    """
    skipped, refused = _BadRows(), _BadRows()
    loaded: list[Source[SampleT]] = []
    for source, prefix in zip(sources, _id_prefixes(sources), strict=True):
        samples: list[SampleT] = []
        num_rows = 0
        for row in _build_rows(read_examples(source, id_prefix=prefix, kind=kind), build):
            num_rows += 1
            if not isinstance(row, BadRow):
                samples.append(row)
            elif _is_skipped(row, config):
                skipped.add(row)
            else:
                refused.add(row)
        if not num_rows:
            raise DataError(f"data source '{prefix}' is empty; remove it or correct its path")
        loaded.append(Source(name=prefix, weight=source.weight, samples=tuple(samples)))
    _raise_if_refused(refused)
    report = SkipReport(counts=dict(skipped.counts), messages=tuple(skipped.messages))
    for source in loaded:
        if not source.samples:
            shown = "\n  ".join(report.messages[:3])
            raise DataError(
                f"data source '{source.name}': all rows were skipped, so nothing is left to use; "
                f"of {report.num_rows:,} skipped rows the first are:\n  {shown}"
            )
    return Dataset(sources=tuple(loaded), skipped=report)


def _build_rows(
    rows: Iterable[LocatedExample | BadRow], build: Callable[[Example], SampleT]
) -> Iterator[SampleT | BadRow]:
    first_location: dict[str, str] = {}
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        example_id = row.example.example_id
        try:
            if example_id in first_location:
                raise RowError(
                    "duplicate id",
                    f"'{example_id}' is also at {first_location[example_id]}; ids must differ",
                )
            first_location[example_id] = row.location
            yield build(row.example)
        except RowError as error:
            yield BadRow(location=row.location, error=error)


def _is_skipped(row: BadRow, config: DataConfig) -> bool:
    action = config.on_long_prompt if row.error.reason == LONG_PROMPT else config.on_bad_row
    return action == "skip"


def _raise_if_refused(refused: _BadRows) -> None:
    num_rows = sum(refused.counts.values())
    if not num_rows:
        return
    lines = [f"{num_rows:,} bad {'row' if num_rows == 1 else 'rows'}:", *refused.messages]
    if num_rows > len(refused.messages):
        lines.append(f"... and {num_rows - len(refused.messages):,} more")
    raise DataError(
        "\n  ".join(lines) + "\nCorrect them, or set data.on_bad_row=skip to leave bad rows out "
        "(data.on_long_prompt=skip for prompts that are too long)"
    )


def _id_prefixes(sources: Sequence[SourceConfig]) -> list[str]:
    """The sources' names, numbered where several have the same, so that ids stay unique."""
    seen: Counter[str] = Counter()
    prefixes: list[str] = []
    for source in sources:
        name = source_name(source)
        seen[name] += 1
        prefixes.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return prefixes
