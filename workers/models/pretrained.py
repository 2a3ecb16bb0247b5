"""Models with their weights, set up for packed rows."""

# torch, peft and DeepSpeed are typed too loosely for these.
# pyright: reportArgumentType=false, reportPrivateImportUsage=false

import logging
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from rlstack.config.model import ModelConfig
from rlstack.errors import ConfigError
from workers.models.packed_attention import (
    AttentionKind,
    attention_kind,
    register_packed_attention,
)
from workers.models.preflight import check_model, check_scalar_model, load_tokenizer

logger = logging.getLogger(__name__)


def load_causal_model(config: ModelConfig, *, device: torch.device) -> PreTrainedModel:
    """A causal model with its weights, attention set up for packed rows, dropout off.

    Raises:
        ConfigError: if the path holds no usable causal language model.
    """
    check_model(config)
    model = AutoModelForCausalLM.from_pretrained(
        config.path,
        dtype=getattr(torch, config.dtype),
        attn_implementation=_attention(config, device),
        trust_remote_code=config.trust_remote_code,
    )
    _without_dropout(model)
    _keep_used_conversions(model)
    return model


def load_scalar_model(
    config: ModelConfig, *, device: torch.device, key: str
) -> tuple[PreTrainedModel, bool]:
    """A one-label sequence classifier set up for packed rows, and whether its head is new.

    From a reward model or critic as it is; from a causal model with a head of its own, whose
    weights the caller must set. key: the configuration key that names the path.

    Raises:
        ConfigError: if the path holds neither.
    """
    check_scalar_model(config, key=key)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        config.path,
        num_labels=1,
        dtype=getattr(torch, config.dtype),
        attn_implementation=_attention(config, device),
        trust_remote_code=config.trust_remote_code,
        output_loading_info=True,
    )
    missing = set(info["missing_keys"])
    if missing - {"score.weight"} or not isinstance(getattr(model, "score", None), nn.Linear):
        raise ConfigError(
            f"{key}: {config.path!r} cannot become a model with one value a token: it lacks the "
            f"weights {', '.join(sorted(missing)) or 'of a linear layer score'}; give a causal "
            "model, or a sequence classifier made from one"
        )
    model.config.architectures = [type(model).__name__]  # what it is from now on, when exported
    # Where a row is padded with it, Hugging Face reads the score before it.
    model.config.pad_token_id = load_tokenizer(config).pad_token_id
    _without_dropout(model)
    _keep_used_conversions(model)
    return model, bool(missing)


def _attention(config: ModelConfig, device: torch.device) -> AttentionKind:
    register_packed_attention()
    on_gpu = device.type == "cuda"
    kind = attention_kind(
        dtype=getattr(torch, config.dtype),
        capability=torch.cuda.get_device_capability(device) if on_gpu else None,
        flash_attn=is_flash_attn_2_available(),
    )
    _say_once(kind, config.dtype, device.type)
    return kind


@cache
def _say_once(kind: AttentionKind, dtype: str, device_type: str) -> None:
    logger.info("attention in %s on %s: %s", dtype, device_type, kind)
    if kind == "rlstack_packed_sdpa" and device_type == "cuda":
        logger.warning(
            "attention pads rows to others of about their length: GPUs from Ampere on have kernels "
            "that need not, for model.dtype=bfloat16; this one runs in %s",
            dtype,
        )


def _keep_used_conversions(model: PreTrainedModel) -> None:
    """What was done to the checkpoint's names and tensors is what `weights` undoes.

    Under ZeRO-3 transformers also remembers what it would do to checkpoints that it did not see.
    """
    conversions: Any = model._weight_conversions
    model._weight_conversions = [c for c in conversions if c.was_used()]  # pyright: ignore[reportAttributeAccessIssue]


def _without_dropout(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.0
