"""JSON against a schema."""

import pytest

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rlstack.errors import RewardError
from rlstack.types import RewardRequest

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        (' \n{"name": "Ada", "age": 36}\n', 1.0),
        ('Here:\n```json\n{"name": "Ada", "age": 36}\n```\nDone.', 1.0),
        ('```json\n{"name": "Ada", "age": 36}\n```\nor\n```\n{}\n```', 0.0),
        ('{"name": "Ada"}', 0.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"name": "Ada", "age": "36"}', 0.0),
        ('{"name": "Ada", "age": 36, "x": 1}', 0.0),
        ('{"name": "Ada", "age": -1, "age": 36}', 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ('{"name": "Ada", "age": 1e999}', 0.0),
        ('{"name": "Ada", "age": 36} and so on', 0.0),
        ("{" * 100_000, 0.0),
        ("[" * 50_000 + "]" * 50_000, 0.0),
        ("9" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_valid_against_the_schema(response: str, value: float) -> None:
    reward = build("json_schema", {"schema": SCHEMA})
    assert reward(RewardRequest(prompt="", response=response)) == value


@pytest.mark.parametrize("schema", [{"type": "integer"}, '{"type": "integer"}'])
def test_the_row_s_own_schema(schema: object) -> None:
    reward = build("json_schema", {})
    metadata = {"json_schema": schema}
    assert reward(RewardRequest(prompt="", response="4", metadata=metadata)) == 1.0
    assert reward(RewardRequest(prompt="", response='"4"', metadata=metadata)) == 0.0


def test_a_missing_or_wrong_schema_is_an_error() -> None:
    with pytest.raises(RewardError, match="has no metadata"):
        build("json_schema", {})(RewardRequest(prompt="", response="4"))
    with pytest.raises(RewardError, match="not a valid JSON Schema"):
        build("json_schema", {"schema": {"type": "whole"}})(RewardRequest(prompt="", response="4"))
