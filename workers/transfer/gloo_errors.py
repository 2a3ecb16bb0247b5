"""What to do where processes do not reach each other over gloo."""

from collections.abc import Iterator
from contextlib import contextmanager

from rlstack.errors import WorkerError


@contextmanager
def gloo_explained() -> Iterator[None]:
    """Around what lets processes meet.

    Raises:
        WorkerError: in the place of gloo's own error.
    """
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(
            f"gloo: the processes do not reach each other: {error}; gloo takes the address that a "
            "node's host name stands for, which is often one of that node alone (127.0.1.1). Name "
            "the network interface that the nodes share: GLOO_SOCKET_IFNAME=eth0, set before "
            "`ray start` on every node"
        ) from error
