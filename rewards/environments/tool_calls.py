"""Tool calls in the text of an action: found, or explained to the model when malformed."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

CallStyle = Literal["json", "fenced"]
"""json: `<tool_call>{"name": "python", "arguments": {"code": "print(1)"}}</tool_call>`, as Hermes
and Qwen models write it. fenced: a ```python block is a call of the tool `python`."""

_TAGGED = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
_FENCED = re.compile(
    r"^[ \t]*```python[ \t]*\n(.*?)(^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_FORM = '<tool_call>{"name": ..., "arguments": {...}}</tool_call>'


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call to carry out."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """A call that cannot be understood; `problem` is for the model to read."""

    problem: str


def find_calls(action: str, style: CallStyle) -> list[ToolCall | MalformedCall]:
    """Every call in `action`, in its order; none if the model called nothing."""
    if style == "fenced":
        return [_fenced(body, closing) for body, closing in _FENCED.findall(action)]
    return [_tagged(body, closing) for body, closing in _TAGGED.findall(action)]


def _fenced(body: str, closing: str) -> ToolCall | MalformedCall:
    if not closing:
        return MalformedCall("the ```python block has no closing ```")
    return ToolCall("python", {"code": body})


def _tagged(body: str, closing: str) -> ToolCall | MalformedCall:
    if not closing:
        return MalformedCall("<tool_call> has no </tool_call>")
    try:
        call: Any = json.loads(body, strict=False)  # models write line breaks inside strings
    except (ValueError, RecursionError) as error:
        return MalformedCall(f"not JSON: {error}. Write {_FORM}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return MalformedCall(f'no "name" of a tool. Write {_FORM}')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return MalformedCall(f'"arguments" is no object. Write {_FORM}')
    return ToolCall(call["name"], arguments)
