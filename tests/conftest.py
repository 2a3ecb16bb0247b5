"""What every test process does."""

import gc

gc.disable()  # it would take a fifth of the time of all imports


def pytest_collection_finish() -> None:
    """Everything is imported."""
    gc.enable()
