"""A tokenizer with one id per character and any chat template, rendered by Jinja as it is."""

from dataclasses import dataclass

from jinja2 import Environment
from jinja2.exceptions import TemplateError

EOS = 0
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class CharTokenizer:
    """One id per character; `<|im_end|>` is one special token, the end of sequence."""

    chat_template: str | None = CHATML
    eos_token_id: int = EOS
    pad_token_id: int = EOS

    @property
    def all_special_tokens(self) -> list[str]:
        return ["<|im_end|>", "<|im_start|>"]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text.replace("<|im_end|>", chr(EOS))]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids)).replace(chr(EOS), "<|im_end|>")

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool
    ) -> str:
        def refuse(text: str) -> None:
            raise TemplateError(text)

        assert self.chat_template is not None
        template = Environment().from_string(self.chat_template)
        return template.render(
            messages=conversation,
            add_generation_prompt=add_generation_prompt,
            raise_exception=refuse,
        )

    def save_pretrained(self, save_directory: object) -> None: ...
