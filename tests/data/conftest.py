"""A character tokenizer and a writer of small files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from rlstack.config.data import DataConfig

EOS, BOS = 0, 1


@dataclass(frozen=True)
class CharTokenizer:
    """One id per character (its code point); special tokens are a leading BOS."""

    chat_template: str | None = None
    eos_token_id: int = EOS
    pad_token_id: int | None = None
    is_fast: bool = True

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool
    ) -> dict[str, list[tuple[int, int]]]:
        assert return_offsets_mapping
        assert not add_special_tokens
        return {"offset_mapping": [(index, index + 1) for index in range(len(text))]}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + [ord(character) for character in text]

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert self.chat_template is not None
        assert not tokenize
        if "tool" in {turn["role"] for turn in conversation}:
            raise TemplateError("unknown role tool")
        turns = "".join(f"<{turn['role']}>{turn['content']}" for turn in conversation)
        return turns + "<assistant>" * add_generation_prompt


@pytest.fixture
def plain_tokenizer() -> CharTokenizer:
    return CharTokenizer()


@pytest.fixture
def chat_tokenizer() -> CharTokenizer:
    return CharTokenizer(chat_template="<role>content")


WriteJsonl = Callable[..., Path]
MakeConfig = Callable[..., DataConfig]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteJsonl:
    """Write rows (or raw lines, where a row is text) to `name` and return the path."""

    def write(*rows: dict[str, Any] | str, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_config() -> MakeConfig:
    """A DataConfig with every key but the given ones at a plain value."""

    def make(**changes: Any) -> DataConfig:
        values: dict[str, Any] = {
            "train": (),
            "eval": (),
            "prompts_per_step": 1,
            "max_prompt_tokens": 1000,
            "on_bad_row": "error",
            "on_long_prompt": "error",
            "shuffle": False,
            "curriculum": None,
            "system_prompt": None,
        }
        return DataConfig.model_validate(values | changes)

    return make
