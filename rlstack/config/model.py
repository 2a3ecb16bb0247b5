"""Group `model`: the policy that is trained."""

from typing import Literal

from rlstack.config.base import Frozen


class ModelConfig(Frozen):
    """A Hugging Face causal language model: a local folder or a hub name."""

    path: str
    dtype: Literal["float32", "bfloat16"]
    trust_remote_code: bool
