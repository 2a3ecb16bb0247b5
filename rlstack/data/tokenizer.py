"""What the data layer needs of a tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the data layer uses."""

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool
    ) -> Mapping[str, Any]: ...

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        tokenize: bool,
        add_generation_prompt: bool,
        return_dict: bool = ...,
        return_assistant_tokens_mask: bool = ...,
        tokenizer_kwargs: dict[str, Any] | None = ...,
    ) -> Any:
        """Text; with `tokenize` and `return_dict`, a mapping."""
        ...

    @property
    def is_fast(self) -> bool:
        """Whether it knows where in the text a token comes from."""
        ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def all_special_tokens(self) -> list[str]: ...

    @property
    def eos_token_id(self) -> int: ...

    @property
    def pad_token_id(self) -> int: ...

    def get_vocab(self) -> dict[str, int]: ...

    def save_pretrained(self, save_directory: str | Path) -> object: ...
