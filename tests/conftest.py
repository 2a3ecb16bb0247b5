"""What every test process does."""

import gc

gc.disable()  # until everything is imported


def pytest_collection_finish() -> None:
    """Collections then do not look at thousands of modules and tests again and again."""
    gc.freeze()
    gc.enable()
