"""One registry serves every kind: a toy kind of its own shows what does not depend on the kind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from rlstack.errors import RegistrationError
from rlstack.registry import Registration, Registry


class ShapeError(RegistrationError):
    """What the toy kind raises."""


@dataclass(frozen=True, slots=True)
class ShapeInfo(Registration):
    corners: int = 0

    def check_signature(self) -> None:
        if not self.name:
            raise ShapeError(f"shape in {self.location} has no name")


SHAPES = Registry(
    ShapeInfo,
    noun="shape",
    error=ShapeError,
    decorator="shape",
    plugins_key="drawing.plugins",
    entry_point_group="rlstack.tests.shapes",
)


def shape(name: str, *, requires: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    def decorate(target: Any) -> Any:
        SHAPES.register(ShapeInfo(name, target, requires, corners=4))
        return target

    return decorate


@shape("square")
def square(offset: float, *, size: Annotated[float, Field(gt=0)], fill: bool = True) -> float:
    """A square.

    More of it.
    """
    return offset + size * size if fill else offset


@shape("round")
class Round:
    def __init__(self, *, radius: float = 1.0) -> None:
        self.radius = radius


@shape("needy", requires=("no_such_package",))
def needy() -> None: ...


def test_functions_are_bound_and_classes_are_made() -> None:
    assert SHAPES.build("square", {"size": "2"})(1.0) == 5.0
    assert SHAPES.build("round", {"radius": 3}).radius == 3.0
    assert SHAPES.bind("round", {})().radius == 1.0


def test_an_entry_says_what_it_is() -> None:
    entry = SHAPES.info("square")
    assert (entry.corners, entry.summary) == (4, "A square.")
    assert [parameter.name for parameter in entry.parameters] == ["size", "fill"]
    path, _, line = entry.location.rpartition(":")
    assert path == __file__
    assert "square" in Path(path).read_text().splitlines()[int(line)]  # the line of the decorator
    assert SHAPES.registered_names() == ("needy", "round", "square")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("squar", {}, "shape 'squar' is unknown. Did you mean 'square'. Known: needy, round, squ"),
        ("circle", {}, "A shape of your own needs its module or file in drawing.plugins."),
        ("square", {}, "shape 'square' needs the parameter 'size' .*Add it to its params"),
        ("square", {"size": 0}, "shape 'square', parameter 'size': expected .*, got 0 .*than 0"),
        ("square", {"size": 1, "fil": 1}, "has no parameter 'fil': did you mean 'fill'"),
        ("square", {"offset": 1, "size": 1}, "has no parameter 'offset': remove it. Its par"),
        ("needy", {}, "shape 'needy' needs the package 'no-such-package', .* pip install no-such"),
    ],
)
def test_mistakes_are_the_kinds_own(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        SHAPES.bind(name, params)


def test_a_name_belongs_to_one_definition() -> None:
    assert shape("square")(square) is square
    with pytest.raises(ShapeError, match=r"'square' is registered twice: .*py:\d+ and .*Rename"):
        shape("square")(Round)
    assert SHAPES.info("square").target is square


def test_what_is_not_of_the_kind_is_refused() -> None:
    with pytest.raises(ShapeError, match="has no name"):
        shape("")(square)


def test_a_plugin_that_fails_is_named_with_the_cause_and_the_key(tmp_path: Path) -> None:
    plugin = tmp_path / "shapes.py"
    plugin.write_text("value = 7")
    assert SHAPES.load_plugin(str(plugin)) is SHAPES.load_plugin(str(plugin))
    assert SHAPES.load_plugin(str(plugin)).value == 7
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    for _ in range(2):  # a failed import leaves nothing behind that would make the next one pass
        with pytest.raises(
            ShapeError, match=r"shape plugin '.*broken\.py' .*: SystemExit: 3\. .*drawing\.plugins"
        ):
            SHAPES.load_plugin(str(broken))
