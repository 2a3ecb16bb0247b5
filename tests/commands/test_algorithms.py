"""The catalog of algorithms is complete, and the committed page is what the code says."""

from pathlib import Path
from typing import Any, get_args

import pytest

from rlstack.algorithms.parts import KL_ESTIMATORS
from rlstack.commands.algorithms import OBJECTIVES, PARTS, catalog_page
from rlstack.config.algorithm import AlgorithmConfig, KLConfig
from rlstack.config.preference import ObjectiveConfig

PAGE = Path(__file__).parents[2] / "rlstack" / "algorithms" / "README.md"


def models_in(annotation: Any) -> list[Any]:
    """The variants of a tagged union."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == catalog_page(), "run: rlstack algorithms > " + str(PAGE)


@pytest.mark.parametrize("group", PARTS)
def test_every_variant_of_a_part_has_its_function(group: str) -> None:
    variants = models_in(AlgorithmConfig.model_fields[group].annotation)
    names = {get_args(model.model_fields["name"].annotation)[0] for model in variants}
    assert len(names) > 2
    assert names <= set(PARTS[group])


def test_every_objective_is_listed_with_the_key_that_selects_it() -> None:
    names = {get_args(m.model_fields["name"].annotation)[0] for m in models_in(ObjectiveConfig)}
    assert names == set(OBJECTIVES)
    section = PAGE.read_text().split("\n## `objective=NAME`")[1].split("\n## ")[0]
    assert all(f"| `{name}` |" in section for name in names)


def test_every_estimator_is_listed() -> None:
    assert set(get_args(KLConfig.model_fields["estimator"].annotation)) == set(KL_ESTIMATORS)


def test_every_method_names_its_source() -> None:
    rows = [line for line in PAGE.read_text().split("\n## ")[1].splitlines() if "| `" in line]
    assert len(rows) >= 18
    for row in rows:
        assert "arXiv " in row, row
