"""Configured sources to datasets of preference pairs or judged responses."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlstack.config.data import DataConfig, SourceConfig
from rlstack.data.dataset import Dataset, checked_prompt, checked_turn, load_samples
from rlstack.data.schemas import RowKind
from rlstack.data.tokenizer import Tokenizer
from rlstack.data.values import RowError, show
from rlstack.types import Example, JudgedResponse, PreferencePair, Prompt


def load_preferences(
    sources: Sequence[SourceConfig],
    tokenizer: Tokenizer,
    *,
    config: DataConfig,
    max_response_tokens: int,
) -> Dataset[PreferencePair]:
    """Read, render and tokenize pairs of responses; see `comparisons` for the schemas.

    All pairs have the same number of features.

    Raises:
        DataError: if a source cannot be read, or naming every bad row that `config` does not skip.
    """
    check_features = _same_number_of_features()

    def build(example: Example) -> PreferencePair:
        comparison = example.comparison
        if comparison is None:
            raise RowError("not a preference row", _expected(example, "chosen and rejected"))
        prompt = checked_prompt(example, tokenizer, config)
        chosen, rejected = (
            _turn(prompt, text, tokenizer, max_response_tokens, name=f"{name} response")
            for name, text in (("chosen", comparison.chosen), ("rejected", comparison.rejected))
        )
        if np.array_equal(chosen, rejected):
            raise RowError(
                "equal responses",
                f"chosen and rejected are both {show(comparison.chosen)}, so there is nothing to "
                "prefer; remove the row",
            )
        check_features(example.example_id, len(comparison.chosen_features))
        return PreferencePair(
            prompt_id=prompt.prompt_id,
            data_source=prompt.data_source,
            text=prompt.text,
            chosen=comparison.chosen,
            rejected=comparison.rejected,
            prompt_ids=prompt.token_ids,
            chosen_ids=chosen,
            rejected_ids=rejected,
            margin=comparison.margin,
            chosen_features=comparison.chosen_features,
            rejected_features=comparison.rejected_features,
            metadata=prompt.metadata,
        )

    return load_samples(sources, build, config=config, kind=RowKind.COMPARISON)


def load_judged_responses(
    sources: Sequence[SourceConfig],
    tokenizer: Tokenizer,
    *,
    config: DataConfig,
    max_response_tokens: int,
) -> Dataset[JudgedResponse]:
    """Like `load_preferences`, for rows with one response each and whether it is desirable.

    Raises:
        DataError: if a source cannot be read, or naming every bad row that `config` does not skip.
    """

    def build(example: Example) -> JudgedResponse:
        if example.desirable is None:
            raise RowError("no label", _expected(example, "label (true or false)"))
        if example.response is None:
            raise RowError(
                "no response",
                "expected a column response or completion, a final assistant turn, or "
                "columns.response",
            )
        prompt = checked_prompt(example, tokenizer, config)
        return JudgedResponse(
            prompt_id=prompt.prompt_id,
            data_source=prompt.data_source,
            text=prompt.text,
            response=example.response,
            prompt_ids=prompt.token_ids,
            response_ids=_turn(prompt, example.response, tokenizer, max_response_tokens),
            desirable=example.desirable,
            metadata=prompt.metadata,
        )

    return load_samples(sources, build, config=config, kind=RowKind.JUDGED)


def _turn(
    prompt: Prompt,
    response: str,
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    name: str = "response",
) -> NDArray[np.int64]:
    if not response.strip():
        raise RowError(f"empty {name}", "it holds no text; remove the row")
    return checked_turn(prompt, response, tokenizer, max_tokens=max_tokens, name=name)


def _expected(example: Example, columns: str) -> str:
    found = ", ".join(sorted(example.metadata)) or "none"
    return f"expected columns {columns}, or columns.* that name them; other columns: {found}"


def _same_number_of_features() -> Callable[[str, int], None]:
    """A check that every row has as many features as the first."""
    first: list[tuple[str, int]] = []

    def check(example_id: str, num_features: int) -> None:
        if not first:
            first.append((example_id, num_features))
        first_id, expected = first[0]
        if num_features != expected:
            raise RowError(
                "different numbers of features",
                f"{num_features} for each response, but {expected} in row '{first_id}'; all rows "
                "must have the same ones, in the same order",
            )

    return check
