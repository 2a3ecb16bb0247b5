"""Batches of preferences: pairs of responses, and single responses that were judged."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from rlstack.batch import Rows, check_tensor, padded_rows, response_row
from rlstack.types import JudgedResponse, PreferencePair


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairBatch(Rows):
    """Preference pairs: rows 2i and 2i + 1 are the chosen and the rejected response of pair i.

    loss_mask: True on the responses' tokens, the end of sequence included, but not on what an
    environment said in between.
    margins: float32 [N], by how much chosen is better, in the units of the data; 0 where it is not
    said. features: float32 [2N, F], scored attributes of each response; F may be 0.
    num_pairs: the denominator of the loss, over every rank and micro-batch of this optimizer step;
    it stays as it is when pairs are selected. data_sources: of each pair, N.
    """

    margins: Tensor
    features: Tensor
    num_pairs: int
    data_sources: tuple[str, ...]

    def __post_init__(self) -> None:
        Rows.__post_init__(self)
        if self.num_rows % 2:
            raise ValueError(f"PairBatch: {self.num_rows} rows; expected two for each pair")
        check_tensor(self, "margins", (self.num_rows // 2,), torch.float32)
        check_tensor(self, "features", (self.num_rows, self.features.shape[-1]), torch.float32)

    @property
    def sample_lengths(self) -> Tensor:
        """int64 [N], real tokens of both rows of each pair."""
        return self.lengths.view(-1, 2).sum(dim=1)

    def select(self, samples: Tensor) -> Self:
        """The same batch with only `samples` (int64 [M], indices of pairs), in that order."""
        rows = torch.stack((2 * samples, 2 * samples + 1), dim=1).flatten()
        chosen = {"margins": self.margins[samples]}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and field.name not in chosen:
                chosen[field.name] = value[rows]
        sources = tuple(self.data_sources[pair] for pair in samples.tolist())
        return replace(self, **chosen, data_sources=sources)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedBatch(Rows):
    """Single responses that were judged good or bad (KTO).

    loss_mask: True on the responses' tokens, the end of sequence included. desirable: bool [N].
    num_responses: the denominator of the loss, over every rank and micro-batch of this optimizer
    step; it stays as it is when rows are selected.
    """

    desirable: Tensor
    num_responses: int

    def __post_init__(self) -> None:
        Rows.__post_init__(self)
        check_tensor(self, "desirable", (self.num_rows,), torch.bool)


def collate_pairs(pairs: Sequence[PreferencePair], *, pad_token_id: int) -> PairBatch:
    """Right-pad pairs into one batch: of each, the chosen response, then the rejected one.

    Raises:
        ValueError: if there is no pair, or pairs have different numbers of features.
    """
    sizes = {len(pair.chosen_features) for pair in pairs}
    if len(sizes) > 1:
        raise ValueError(f"collate_pairs: pairs with {sorted(sizes)} features in one batch")
    rows = padded_rows(
        [
            response_row(pair.prompt_ids, response, mask)
            for pair in pairs
            for response, mask in (
                (pair.chosen_ids, pair.chosen_mask),
                (pair.rejected_ids, pair.rejected_mask),
            )
        ],
        pad_token_id=pad_token_id,
    )
    features = [f for pair in pairs for f in (pair.chosen_features, pair.rejected_features)]
    margins = [0.0 if pair.margin is None else pair.margin for pair in pairs]
    return PairBatch(
        token_ids=rows.token_ids,
        attention_mask=rows.attention_mask,
        loss_mask=rows.loss_mask,
        margins=torch.tensor(margins, dtype=torch.float32),
        features=torch.tensor(features, dtype=torch.float32),
        num_pairs=len(pairs),
        data_sources=tuple(pair.data_source for pair in pairs),
    )


def collate_judged(responses: Sequence[JudgedResponse], *, pad_token_id: int) -> JudgedBatch:
    """Right-pad judged responses, behind their prompts, into one batch.

    Raises:
        ValueError: if there is none.
    """
    rows = padded_rows(
        [response_row(r.prompt_ids, r.response_ids) for r in responses],
        pad_token_id=pad_token_id,
    )
    return JudgedBatch(
        token_ids=rows.token_ids,
        attention_mask=rows.attention_mask,
        loss_mask=rows.loss_mask,
        desirable=torch.tensor([r.desirable for r in responses], dtype=torch.bool),
        num_responses=len(responses),
    )
