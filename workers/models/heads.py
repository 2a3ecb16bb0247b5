"""Hugging Face models as functions of packed rows: token logprobs, or values of token positions.

The only place that shifts tokens: a model's output at position t predicts token t + 1, and from
here on entry t of every per-token tensor describes token t.
"""

# torch, peft and DeepSpeed are typed too loosely for these.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlstack.batch import Rows
from workers.models.packed_rows import PackedRows, pack


class ChunkedHead(nn.Module):
    """The output embedding, applied to a few tokens at a time: [N, vocabulary] is never held whole.

    It shares the embedding's parameters instead of calling it, so that ZeRO-3 gathers them once a
    call: ranks with different numbers of chunks would otherwise wait for each other for ever.
    """

    def __init__(self, output_embedding: nn.Linear, *, chunk_tokens: int) -> None:
        super().__init__()
        self.weight = output_embedding.weight
        self.bias = output_embedding.bias
        self.chunk_tokens = chunk_tokens

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        *,
        temperature: float,
        entropy_gradient: bool,
        greedy: bool,
    ) -> tuple[Tensor, Tensor]:
        """Logprobs of `targets` int64 [N] and entropy, float32 [N], from `hidden` [N, D].

        With `greedy` 1 where the target is the likeliest token, else 0, in place of the entropy.
        """
        num_tokens = len(targets)
        recompute = torch.is_grad_enabled() and num_tokens > self.chunk_tokens
        parts = []
        for start in range(0, max(num_tokens, 1), self.chunk_tokens):
            chunk = slice(start, start + self.chunk_tokens)
            arguments = (hidden[chunk], targets[chunk], temperature, entropy_gradient, greedy)
            if recompute:
                parts.append(checkpoint(self._chunk, *arguments, use_reentrant=False))
            else:
                parts.append(self._chunk(*arguments))
        logprobs, statistics = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(statistics)

    def _chunk(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        entropy_gradient: bool,
        greedy: bool,
    ) -> tuple[Tensor, Tensor]:
        logits = functional.linear(hidden, self.weight, self.bias).float() / temperature
        normalizer = logits.logsumexp(dim=-1)
        logprobs = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - normalizer
        if greedy:
            return logprobs, (logits.argmax(dim=-1) == targets).float()
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            distribution = logits.softmax(dim=-1)
            entropy = normalizer - (distribution * logits).sum(dim=-1)
        return logprobs, entropy


class TokenLogprobs(nn.Module):
    """A causal model that returns the logprobs and entropies of the loss tokens of packed rows."""

    def __init__(self, model: PreTrainedModel, *, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.head = ChunkedHead(model.get_output_embeddings(), chunk_tokens=chunk_tokens)

    def forward(
        self,
        packed: PackedRows,
        *,
        temperature: float,
        entropy_gradient: bool = False,
        greedy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Logprobs and entropy of the loss tokens, float32 [N], nats, at `temperature`.

        With `greedy` 1 where a loss token is the likeliest, else 0, in place of the entropy.
        """
        hidden = last_hidden(self.model, packed)
        return self.head(
            hidden.index_select(0, packed.predictors),
            packed.targets,
            temperature=temperature,
            entropy_gradient=entropy_gradient,
            greedy=greedy,
        )


class TokenValues(nn.Module):
    """A sequence classifier with one label that returns its score at chosen positions."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, packed: PackedRows) -> Tensor:
        """Scores at `packed.predictors`, float32 [N], reward units.

        Those are where a token is predicted from: the value of the state before that token.
        """
        hidden = last_hidden(self.model, packed).index_select(0, packed.predictors)
        return self.model.score(hidden).squeeze(1).float()


def last_hidden(model: PreTrainedModel, packed: PackedRows) -> Tensor:
    """The last hidden state of every token of packed rows, [L, D]."""
    return model.base_model(
        input_ids=packed.token_ids,
        position_ids=packed.position_ids,
        use_cache=False,
        cu_seq_lens_q=packed.boundaries,
        cu_seq_lens_k=packed.boundaries,
        max_length_q=packed.longest,
        max_length_k=packed.longest,
    ).last_hidden_state[0]


def token_values(
    values_of: Callable[[PackedRows], tuple[Tensor, ...]], rows: Rows, *, device: torch.device
) -> tuple[Tensor, ...]:
    """What a model says of the loss tokens of `rows`, each float32 [B, T], 0 where not loss_mask.

    rows: on the CPU. values_of: of packed rows on `device`, float32 [N] each, one number for each
    loss token in order. Gradients flow through.
    """
    packed = pack(rows.token_ids, rows.attention_mask, rows.loss_mask).to(device)
    mask = rows.loss_mask.to(device)
    zeros = torch.zeros(mask.shape, device=device)
    return tuple(zeros.masked_scatter(mask, values) for values in values_of(packed))


def batch_values(
    values_of: Callable[[Rows], Tensor], batch: Rows, plan: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Row indices of the micro-batches in `plan`, int64 [N], and their values, [N, T] on the CPU.

    Without gradient.
    """
    with torch.no_grad():
        parts = [values_of(batch.select(torch.tensor(rows))).cpu() for rows in plan]
    return torch.tensor([row for rows in plan for row in rows]), torch.cat(parts)
