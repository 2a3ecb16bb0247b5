"""The bases of every configuration model."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, how to fix it, and the keys it depends on; the first is the one to change."""

    keys: tuple[str, ...]
    text: str


class RunSchema(Frozen):
    """The whole configuration of a command."""

    def problems(self) -> list[Problem]:
        """Impossible combinations of keys that are right by themselves."""
        raise NotImplementedError
