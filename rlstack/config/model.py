"""Group `model`: the policy that is trained."""

from typing import Literal

from rlstack.config.base import Frozen
from rlstack.config.paths import LocalOrHub


class ModelConfig(Frozen):
    """A Hugging Face causal language model: a local folder or a hub name."""

    path: LocalOrHub
    dtype: Literal["float32", "bfloat16"]
    trust_remote_code: bool
