"""The garbage collector is held off during imports and is as it was before."""

import gc
from collections.abc import Iterator

import pytest

from rlstack.quick_imports import quick_imports


@pytest.fixture(autouse=True)
def _enabled_again() -> Iterator[None]:
    yield
    gc.enable()


def test_nothing_is_collected_on_the_way() -> None:
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        raise ModuleNotFoundError
    assert gc.isenabled()


def test_who_has_none_gets_none() -> None:
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()
