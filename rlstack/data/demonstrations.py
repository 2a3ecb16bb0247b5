"""Configured sources to datasets of demonstrations, for supervised training."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rlstack.config.data import DataConfig, SourceConfig
from rlstack.data.dataset import (
    Dataset,
    check_prompt_length,
    checked_prompt,
    checked_turn,
    load_samples,
)
from rlstack.data.tokenizer import Tokenizer
from rlstack.data.turns import encode_earlier_turns
from rlstack.data.values import RowError
from rlstack.types import Demonstration, Example


def load_demonstrations(
    sources: Sequence[SourceConfig],
    tokenizer: Tokenizer,
    *,
    config: DataConfig,
    max_response_tokens: int,
    train_on: Literal["all_turns", "last_turn"],
) -> Dataset[Demonstration]:
    """Like `load_prompts`, with the rows' responses; a row without one is a bad row.

    The response is in the loss; with `all_turns`, the assistant's turns before it are too.

    Raises:
        DataError: if a source cannot be read, or naming every bad row that `config` does not skip.
    """

    def build(example: Example) -> Demonstration:
        if not example.response:
            raise RowError(
                "no response",
                "supervised training needs one: a column response or completion, a final assistant "
                "turn, or columns.response",
            )
        prompt = checked_prompt(example, tokenizer, config)
        response_ids = checked_turn(
            prompt, example.response, tokenizer, max_tokens=max_response_tokens
        )
        prompt_ids = prompt.token_ids
        prompt_mask = np.zeros(len(prompt_ids), dtype=np.bool_)
        if train_on == "all_turns":
            prompt_ids, prompt_mask = encode_earlier_turns(prompt, tokenizer=tokenizer)
            check_prompt_length(len(prompt_ids), config)  # turn by turn there may be more tokens
        return Demonstration(
            prompt_id=prompt.prompt_id,
            data_source=prompt.data_source,
            text=prompt.text,
            token_ids=np.concatenate((prompt_ids, response_ids)),
            loss_mask=np.concatenate((prompt_mask, np.ones(len(response_ids), dtype=np.bool_))),
            metadata=prompt.metadata,
        )

    return load_samples(sources, build, config=config)
