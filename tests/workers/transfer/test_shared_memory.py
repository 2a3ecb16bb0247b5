"""Shared memory that is too small is named; Linux would kill the rank without a word."""

import pytest
import torch

from rlstack.errors import WeightSyncError

pytestmark = pytest.mark.real_stack


def test_weights_that_do_not_fit_are_refused_before_they_are_written() -> None:
    from workers.transfer.shared_memory import SharedMemoryTrainerEngine

    engine = SharedMemoryTrainerEngine(client=None)  # type: ignore[arg-type]
    too_large = torch.empty(2**50, dtype=torch.uint8, device="meta")
    with pytest.raises(WeightSyncError, match=r"/dev/shm: .* 1073741824 MiB .* MiB are free"):
        engine.send_bucket([("weight", too_large)])
    assert engine.segment is None
