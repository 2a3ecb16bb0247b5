"""The columns of one raw row, and which of them have been read."""

from collections.abc import Mapping
from typing import Any

from rlstack.data.values import RowError


class Columns:
    """The columns of a row that are not null; remembers which were read."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.values = {name: value for name, value in raw.items() if value is not None}
        self.read: set[str] = set()

    def take(self, *names: str) -> tuple[str, Any] | None:
        """Name and value of the first of the columns that is there."""
        for name in names:
            if name in self.values:
                self.read.add(name)
                return name, self.values[name]
        return None

    def take_named(self, name: str, *, key: str) -> Any:
        """Value of a column that the configuration names."""
        found = self.take(name)
        if found is None:
            raise RowError(
                f"no value in column '{name}'",
                f"{key} names it; columns with a value: {self.describe()}",
            )
        return found[1]

    def rest(self) -> dict[str, Any]:
        """The columns that nothing has read."""
        return {name: value for name, value in self.values.items() if name not in self.read}

    def describe(self) -> str:
        """The names of the columns, for a message."""
        return ", ".join(sorted(self.values)) or "none"
