"""A reward model on one device: any one-label sequence classifier, in batches of limited tokens.

torch and transformers are imported when a model is loaded, so that rewards stay light without one.
"""

# transformers types its tokenizers and models too loosely, or wrongly.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportPrivateImportUsage=false
# pyright: reportArgumentType=false, reportReturnType=false

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rlstack.errors import RewardError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SpecialTokens = Literal["end", "tokenizer"]


class SequenceScorer:
    """Raw scores (logits, in the model's own units) of texts by one checkpoint."""

    def __init__(
        self,
        checkpoint: str,
        *,
        max_tokens_per_batch: int,
        max_tokens: int,
        special_tokens: SpecialTokens = "end",
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """Load the model.

        checkpoint: folder or hub name. max_tokens_per_batch: padding included. max_tokens: longest
        text; a longer one loses its start, because the response is at the end. special_tokens:
        "end" adds the end of sequence (a rendered prompt has the others), as causal models want it;
        "tokenizer" adds what the tokenizer adds by itself, as encoders want it.

        Raises:
            RewardError: if it cannot be loaded, has not one label, or cannot pad.
        """
        import torch

        if max_tokens > max_tokens_per_batch:
            raise RewardError(
                f"reward model: max_tokens={max_tokens} is more than max_tokens_per_batch="
                f"{max_tokens_per_batch}, so a text of that length fits no batch. Raise the latter."
            )
        self._model, self._tokenizer = _load(checkpoint, dtype=getattr(torch, dtype))
        self._model.to(device)
        self._device = device
        self._special_tokens = special_tokens
        self._budget, self._max_tokens = max_tokens_per_batch, max_tokens
        self._num_passes: Callable[[int], int] | None = None

    @property
    def model(self) -> Any:
        """What computes: the checkpoint's model, or what it was wrapped in."""
        return self._model

    def share_model(self, wrap: Callable[[Any], Any], num_passes: Callable[[int], int]) -> None:
        """Put `wrap(model)` in the model's place: one that processes hold and compute together.

        num_passes: from the forward passes that this process needs to those that all of them make.
        """
        self._model = wrap(self._model)
        self._num_passes = num_passes

    def token_ids(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """What the model reads of each prompt and response: the last `max_tokens` tokens."""
        if not prompts:
            return []  # which the tokenizer would not take
        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        by_tokenizer = self._special_tokens == "tokenizer"
        end = None if by_tokenizer else self._tokenizer.eos_token_id
        encoded = self._tokenizer(texts, add_special_tokens=by_tokenizer)["input_ids"]
        return [
            [*ids, *([] if end is None or ids[-1:] == [end] else [end])][-self._max_tokens :]
            for ids in encoded
        ]

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The logit of each row of token ids, in their order."""
        scores = [0.0] * len(rows)
        batches = token_batches([len(row) for row in rows], max_tokens=self._budget)
        # Asked before the first pass, in which the processes already work together.
        num_passes = self._num_passes(len(batches)) if self._num_passes else len(batches)
        for batch in batches:
            for index, value in zip(batch, self._logits([rows[i] for i in batch]), strict=True):
                scores[index] = value
        for _ in range(num_passes - len(batches)):
            self._logits([[self._tokenizer.pad_token_id]])  # the others need this process
        return scores

    def _logits(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Of one batch, right-padded."""
        import torch

        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self._tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for line, row in enumerate(rows):
            ids[line, : len(row)] = torch.tensor(row)
            mask[line, : len(row)] = 1
        with torch.no_grad():
            output = self._model(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
            )
        return output.logits[:, 0].float().cpu().tolist()


def token_batches(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Row indices by batch, longest rows first, each batch at most `max_tokens` with its padding.

    A row longer than that is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # Rows come longest first, so the first of a batch is its width.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _load(checkpoint: str, *, dtype: Any) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        if config.num_labels != 1:
            raise RewardError(
                f"reward model {checkpoint!r} has {config.num_labels} labels; expected 1, the "
                "score. Give a checkpoint that was trained as a reward model."
            )
        model, found = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, config=config, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, RewardError):
            raise
        raise RewardError(f"reward model {checkpoint!r} cannot be loaded: {error}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise RewardError(
            f"reward model {checkpoint!r} lacks the weights {', '.join(missing)}; they would be "
            "random. Give a checkpoint that was trained as a reward model."
        )
    if tokenizer.pad_token_id is None:
        raise RewardError(
            f"reward model {checkpoint!r}: its tokenizer has no padding token, so texts cannot be "
            "batched. Set pad_token in its tokenizer_config.json, to eos_token for instance."
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer
