"""How a row judges programs: by output, by calls, or by an assert program."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputCase(_Strict):
    """A run of the program."""

    stdin: str = ""
    stdout: str


class CallCase(_Strict):
    """A call of the function."""

    args: list[Any] | dict[str, Any]
    expected: Any


class Programs(_Strict):
    """Judged by what the program prints."""

    cases: list[InputCase] = Field(min_length=1)
    prelude: str = ""


class Calls(_Strict):
    """Judged by what the function returns."""

    entry_point: str = Field(min_length=1)
    cases: list[CallCase] = Field(min_length=1)
    prelude: str = ""


class Tests(_Strict):
    """Judged by an assert program."""

    entry_point: str = Field(min_length=1)
    tests: str = Field(min_length=1)
    prelude: str = ""


Checks = Programs | Calls | Tests
CHECKS: TypeAdapter[Checks] = TypeAdapter(Checks)
