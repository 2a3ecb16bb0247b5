"""Rows laid end to end without padding, and the attention that keeps them apart."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workers.progress import work

PACKED_SDPA = "rlstack_packed_sdpa"


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


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention within each packed row; query [1, H, L, D], key and value [1, H_kv, L, D].

    Rows are padded for the attention product alone: its cost grows with rows x longest^2, where one
    masked product over the whole pack would cost L^2. Padding sits to the right, where causal
    attention never looks.
    """
    lengths = cu_seq_lens_q.diff().long()
    num_rows = len(lengths)
    row = torch.repeat_interleave(torch.arange(num_rows, device=query.device), lengths)
    column = torch.arange(len(row), device=query.device) - cu_seq_lens_q.long()[row]

    def pad(packed: Tensor) -> Tensor:
        padded = packed.new_zeros(num_rows, max_length_q, packed.shape[1], packed.shape[3])
        padded[row, column] = packed[0].transpose(0, 1)
        return padded.transpose(1, 2)

    window = None
    if sliding_window is not None and sliding_window < max_length_q:
        distance = torch.arange(max_length_q, device=query.device)
        distance = distance.unsqueeze(1) - distance.unsqueeze(0)
        window = (distance >= 0) & (distance < sliding_window)
    padded_output = functional.scaled_dot_product_attention(
        pad(query),
        pad(key),
        pad(value),
        attn_mask=window,
        is_causal=window is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return padded_output.transpose(1, 2)[row, column].unsqueeze(0), None


def register_packed_sdpa() -> None:
    """Make it known to transformers, once per process; again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(PACKED_SDPA, packed_sdpa)
