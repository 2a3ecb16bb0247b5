import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.environments.tool_calls import CallStyle, MalformedCall, ToolCall, find_calls

RIGHT = '<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n</tool_call>'


def test_calls_are_found_in_their_order() -> None:
    second = '<tool_call>{"name": "calculator", "arguments": {"expression": "1"}}</tool_call>'
    assert find_calls(f"Let me see.\n{RIGHT} and {second}", "json") == [
        ToolCall("python", {"code": "print(1)"}),
        ToolCall("calculator", {"expression": "1"}),
    ]


def test_line_breaks_inside_strings_are_allowed() -> None:
    call = '<tool_call>{"name": "python", "arguments": {"code": "a\nb"}}</tool_call>'
    assert find_calls(call, "json") == [ToolCall("python", {"code": "a\nb"})]


def test_an_action_without_a_call_has_none() -> None:
    assert find_calls("The answer is 4.", "json") == []
    assert find_calls("```\nno language\n```", "fenced") == []
    assert find_calls("```python\nprint(1)\n```", "json") == []


def test_a_python_block_is_a_call() -> None:
    assert find_calls("So:\n```python\nprint(1)\n```\nand", "fenced") == [
        ToolCall("python", {"code": "print(1)\n"})
    ]


@pytest.mark.parametrize(
    ("action", "style", "problem"),
    [
        ("<tool_call>{}", "json", "no </tool_call>"),
        ("<tool_call>print(1)</tool_call>", "json", "not JSON"),
        ("<tool_call>[1]</tool_call>", "json", 'no "name"'),
        ('<tool_call>{"name": 3}</tool_call>', "json", 'no "name"'),
        ('<tool_call>{"name": "a", "arguments": 3}</tool_call>', "json", "no object"),
        ("```python\nprint(1)", "fenced", "no closing"),
    ],
)
def test_malformed_calls_are_explained(action: str, style: CallStyle, problem: str) -> None:
    (found,) = find_calls(action, style)
    assert isinstance(found, MalformedCall)
    assert problem in found.problem


@given(body=st.text(), style=st.sampled_from(["json", "fenced"]))
def test_nothing_a_model_writes_raises(body: str, style: CallStyle) -> None:
    find_calls(body, style)
    assert len(find_calls(f"<tool_call>{body}</tool_call>", "json")) >= 1


def test_deep_nesting_is_a_malformed_call() -> None:
    (found,) = find_calls(f"<tool_call>{'[' * 100_000}</tool_call>", "json")
    assert isinstance(found, MalformedCall)
