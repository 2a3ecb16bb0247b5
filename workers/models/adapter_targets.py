"""Which modules of a model get adapters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoConfig

from rlstack.config.model import ModelConfig
from rlstack.config.trainer import LoRAConfig
from rlstack.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_adapters(config: ModelConfig, lora: LoRAConfig | None, *, key: str) -> None:
    """Fail early, before any process starts, if the model lacks a target.

    key: the configuration key of `lora`.

    Raises:
        ConfigError: naming the targets that the model has.
    """
    if lora is None or lora.target_modules is None:
        return
    from transformers import AutoModelForCausalLM  # its import takes long, and few ask for it

    hf_config = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            hf_config, trust_remote_code=config.trust_remote_code
        )
    target_names(model, lora, whole=(), key=key)


def target_names(
    model: "PreTrainedModel", lora: LoRAConfig, *, whole: Sequence[str], key: str
) -> list[str]:
    """The last parts of the names of the modules that get adapters.

    Raises:
        ConfigError: if the model lacks one, naming those that it has.
    """
    output = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not output
        and name.partition(".")[0] not in whole
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    wanted = known if lora.target_modules is None else list(lora.target_modules)
    unknown = [
        target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]
    if unknown or not wanted:
        raise ConfigError(
            f"{key}.target_modules: {', '.join(unknown) or 'empty'}; adapters can go on "
            f"{', '.join(known)}, or null for all of these"
        )
    return wanted
