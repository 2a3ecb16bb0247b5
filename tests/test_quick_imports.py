"""The garbage collector is held off during imports and is as it was before."""

import gc
from collections.abc import Iterator

import pytest

from rlstack.quick_imports import quick_imports


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.enable()


def test_nothing_is_collected_on_the_way_nor_looked_at_later() -> None:
    kept = []
    with quick_imports():
        assert not gc.isenabled()
        kept.append([])
    assert gc.isenabled()
    assert not any(found is kept[0] for found in gc.get_objects())


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        raise ModuleNotFoundError
    assert gc.isenabled()


def test_who_has_none_gets_none() -> None:
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()
