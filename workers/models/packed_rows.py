"""Rows laid end to end without padding."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from workers.progress import work


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRows:
    """Rows of a [B, T] batch laid end to end without padding.

    token_ids, position_ids: int64 [1, L]. boundaries: int32 [rows + 1], cumulative lengths.
    predictors: int64 [N], where in L the model's output is read: where it predicts each loss token,
    or where it scores each row. targets: int64 [N], the loss tokens; none where rows are scored.
    """

    token_ids: Tensor
    position_ids: Tensor
    boundaries: Tensor
    longest: int
    predictors: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "PackedRows":
        """The same rows on `device`."""
        return PackedRows(
            token_ids=self.token_ids.to(device),
            position_ids=self.position_ids.to(device),
            boundaries=self.boundaries.to(device),
            longest=self.longest,
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
        )


def pack(token_ids: Tensor, attention_mask: Tensor, loss_mask: Tensor) -> PackedRows:
    """Lay the rows of right-padded int64/bool [B, T] tensors end to end.

    Raises:
        ValueError: if the first token of a row is a loss token (nothing predicts it).
    """
    work.advance()  # with every forward pass
    if bool(loss_mask[:, 0].any()):
        raise ValueError("pack: the first token of a row cannot be a loss token")
    lengths = attention_mask.sum(dim=1)
    columns = torch.arange(token_ids.shape[1]).expand_as(token_ids)
    flat_loss_mask = loss_mask[attention_mask]
    flat_ids = token_ids[attention_mask]
    positions = flat_loss_mask.nonzero().squeeze(1)
    return PackedRows(
        token_ids=flat_ids.unsqueeze(0),
        position_ids=columns[attention_mask].unsqueeze(0),
        boundaries=functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32),
        longest=int(lengths.max()),
        predictors=positions - 1,
        targets=flat_ids[positions],
    )


def pack_scored(token_ids: Tensor, attention_mask: Tensor, *, pad_token_id: int) -> PackedRows:
    """Lay rows end to end to be scored, each at its last token that is not `pad_token_id`.

    Hugging Face's sequence classifiers read their score there: where the end of sequence doubles as
    padding, that is the token before it. token_ids, attention_mask: as in `pack`.
    """
    packed = pack(token_ids, attention_mask, torch.zeros_like(attention_mask))
    columns = torch.arange(token_ids.shape[1]) * (attention_mask & (token_ids != pad_token_id))
    return replace(packed, predictors=packed.boundaries[:-1].long() + columns.amax(dim=1))
