"""Hugging Face causal models as functions from packed rows to token logprobs.

The only place that shifts tokens: a model's output at position t predicts token t + 1, and from
here on entry t of every per-token tensor describes token t.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from rlstack.batch import TokenBatch
from rlstack.config.model import ModelConfig
from rlstack.errors import ConfigError
from rlstack.protocols import Tokenizer

PACKED_SDPA = "rlstack_packed_sdpa"

# Architectures with these set change logits after the output embedding; `TokenLogprobs` does not.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRows:
    """Rows of a [B, T] batch laid end to end without padding.

    token_ids, position_ids: int64 [1, L]. boundaries: int32 [rows + 1], cumulative lengths.
    predictors: int64 [N], where in L the model predicts each loss token. targets: int64 [N].
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
        hidden = self.model.base_model(
            input_ids=packed.token_ids,
            position_ids=packed.position_ids,
            use_cache=False,
            cu_seq_lens_q=packed.boundaries,
            cu_seq_lens_k=packed.boundaries,
            max_length_q=packed.longest,
            max_length_k=packed.longest,
        ).last_hidden_state[0]
        return self.head(
            hidden.index_select(0, packed.predictors),
            packed.targets,
            temperature=temperature,
            entropy_gradient=entropy_gradient,
            greedy=greedy,
        )


def token_logprobs(
    module: Callable[..., tuple[Tensor, Tensor]],
    batch: TokenBatch,
    microbatches: Sequence[Sequence[int]],
    *,
    temperature: float,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Logprobs of the rows in `microbatches`, without gradient.

    Returns the row indices, int64 [N], and their logprobs, float32 [N, T] on the CPU, 0 where
    loss_mask is False.
    """
    parts = []
    with torch.no_grad():
        for rows in microbatches:
            own = batch.select(torch.tensor(rows))
            packed = pack(own.token_ids, own.attention_mask, own.loss_mask).to(device)
            values, _ = module(packed, temperature=temperature)
            parts.append(
                torch.zeros(own.loss_mask.shape).masked_scatter(own.loss_mask, values.cpu())
            )
    return torch.tensor([row for rows in microbatches for row in rows]), torch.cat(parts)


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


ALL_ATTENTION_FUNCTIONS.register(PACKED_SDPA, packed_sdpa)


def load_causal_model(config: ModelConfig, *, device: torch.device) -> PreTrainedModel:
    """The policy with its weights, attention set up for packed rows, dropout off.

    Raises:
        ConfigError: if the path holds no usable causal language model.
    """
    check_model(config)
    attention = (
        "flash_attention_2"
        if device.type == "cuda" and config.dtype == "bfloat16" and is_flash_attn_2_available()
        else PACKED_SDPA
    )
    model = AutoModelForCausalLM.from_pretrained(
        config.path,
        dtype=getattr(torch, config.dtype),
        attn_implementation=attention,
        trust_remote_code=config.trust_remote_code,
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.0
    return model


def check_model(config: ModelConfig) -> None:
    """Fail early, before any process starts, if the model cannot be loaded.

    Raises:
        ConfigError: naming `model.path` and the fix.
    """
    try:
        hf_config = AutoConfig.from_pretrained(
            config.path, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.path: {config.path!r} is neither a local folder with a Hugging Face model "
            f"(config.json, *.safetensors, tokenizer) nor a hub model that can be reached: {reason}"
        ) from error
    for name in _LOGIT_TRANSFORMS:
        if getattr(hf_config, name, None) not in (None, 1.0):
            raise ConfigError(
                f"model.path: {config.path!r} uses {name}, which the trainer's chunked logprobs do "
                "not apply; choose a model without it"
            )


def check_positions(config: ModelConfig, *, longest_row: int) -> None:
    """Fail early if a prompt and its response may be longer than the model knows positions.

    Raises:
        ConfigError: naming the keys to lower.
    """
    hf_config = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    positions = getattr(hf_config, "max_position_embeddings", None)
    rope: dict[str, object] = getattr(hf_config, "rope_parameters", None) or {}
    scaled = rope.get("rope_type", "default") != "default"  # then vLLM knows how far it reaches
    if positions is not None and not scaled and longest_row > positions:
        raise ConfigError(
            f"data.max_prompt_tokens: prompt and response may have {longest_row} tokens, but "
            f"{config.path!r} has {positions} positions; lower data.max_prompt_tokens or the "
            "longest response (max_response_tokens of rollout, evaluation or sft)"
        )


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ConfigError: if it is missing or has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            config.path, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: no tokenizer in {config.path!r}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model.path: the tokenizer of {config.path!r} has no eos_token; set one in its "
            "tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked: any token will do
    return tokenizer


def is_model_directory(path: Path) -> bool:
    """Whether a folder holds a Hugging Face model."""
    return (path / "config.json").is_file()
