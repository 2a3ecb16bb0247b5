"""What a model's folder or hub entry says of it, checked before anything starts; and tokenizers.

The driver waits for these imports: what needs a model's code is in `pretrained`.
"""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from rlstack.config.model import ModelConfig
from rlstack.data.tokenizer import Tokenizer
from rlstack.errors import ConfigError

# Architectures with these set change logits after the output embedding; `TokenLogprobs` does not.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def check_model(config: ModelConfig, *, key: str = "model.path") -> None:
    """Fail early, before any process starts, if the model cannot be loaded.

    Raises:
        ConfigError: naming `key`, which gave the path, and the fix.
    """
    hf_config = _read_config(config, key=key)
    for name in _LOGIT_TRANSFORMS:
        if getattr(hf_config, name, None) not in (None, 1.0):
            raise ConfigError(
                f"{key}: {config.path!r} uses {name}, which the trainer's chunked logprobs do "
                "not apply; choose a model without it"
            )


def check_scalar_model(config: ModelConfig, *, key: str) -> None:
    """Fail early if the path holds neither a causal model nor a classifier with one label.

    Raises:
        ConfigError: naming `key` and the fix.
    """
    hf_config = _read_config(config, key=key)
    architectures: list[str] = getattr(hf_config, "architectures", None) or []
    classifier = any(name.endswith("ForSequenceClassification") for name in architectures)
    if classifier and hf_config.num_labels != 1:
        raise ConfigError(
            f"{key}: {config.path!r} is a classifier with {hf_config.num_labels} labels; expected "
            "1, the score. Give a reward model, a critic or a causal model"
        )


def _read_config(config: ModelConfig, *, key: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{key}: {config.path!r} is neither a local folder with a Hugging Face model "
            f"(config.json, *.safetensors, tokenizer) nor a hub model that can be reached: {reason}"
        ) from error


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


def model_fingerprint(config: ModelConfig) -> str:
    """What changes when the model does: a folder's files, or the commit of a hub model."""
    folder = Path(config.path)
    if folder.is_dir():
        files = sorted(f for f in folder.iterdir() if f.is_file())
        found = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return repr((found, config.dtype))
    hf_config = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    return repr((config.path, getattr(hf_config, "_commit_hash", None), config.dtype))


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers write every text with the same token ids."""
    return one.get_vocab() == other.get_vocab()


def is_model_directory(path: Path) -> bool:
    """Whether a folder holds a Hugging Face model."""
    return (path / "config.json").is_file()
