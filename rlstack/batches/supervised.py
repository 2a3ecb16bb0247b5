"""Batches of demonstrations."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlstack.batch import Rows, padded_rows
from rlstack.types import Demonstration


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SFTBatch(Rows):
    """Demonstrations.

    num_loss_tokens: the denominator of the loss over the whole optimizer step.
    """

    num_loss_tokens: int


def collate_demonstrations(
    demonstrations: Sequence[Demonstration], *, pad_token_id: int
) -> SFTBatch:
    """Right-pad demonstrations into one batch.

    Raises:
        ValueError: if there is none.
    """
    rows = padded_rows(
        [(d.token_ids, d.loss_mask) for d in demonstrations], pad_token_id=pad_token_id
    )
    return SFTBatch(
        token_ids=rows.token_ids,
        attention_mask=rows.attention_mask,
        loss_mask=rows.loss_mask,
        num_loss_tokens=int(rows.loss_mask.sum()),
    )
