"""Taking a run up again after the death of a process that cannot be replaced by itself."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rlstack.config.run import RLConfig
from rlstack.config.supervised import SupervisedConfig
from rlstack.errors import PlacementError, RankDiedError, WorkerError
from rlstack.run.progress import Summary

logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=RLConfig | SupervisedConfig)

WAIT_S = 10.0
"""Between two looks for the resources of a node that was lost."""


async def taken_up(
    config: ConfigT, attempt: Callable[[ConfigT], Awaitable[Summary]], *, command: str
) -> Summary:
    """Carry out `attempt`; if a rank dies, start everything anew and go on from the newest
    checkpoint, or from the beginning where there is none.

    What was done since is done again, with the same bits.

    Raises:
        WorkerError: if processes die more often than `faults.max_restarts`, naming the last one.
    """
    current = config
    for restart in itertools.count(1):
        try:
            return await _placed(current, attempt, is_first=restart == 1)
        except WorkerError as error:
            if not isinstance(error, RankDiedError) or restart > config.faults.max_restarts:
                raise WorkerError(
                    f"{error}\nfaults.max_restarts={config.faults.max_restarts} allows no more; "
                    f"continue with rlstack {command} resume={config.run_dir}"
                ) from error
            logger.warning("%s\nthe run is taken up from its newest checkpoint", error)
            current = config.model_copy(update={"resume": config.run_dir})
    raise AssertionError("counting does not end")


async def _placed(
    config: ConfigT, attempt: Callable[[ConfigT], Awaitable[Summary]], *, is_first: bool
) -> Summary:
    """`attempt`; later than the first time, wait until the cluster has the resources again."""
    deadline = time.monotonic() + config.faults.start_s
    while True:
        try:
            return await attempt(config)
        except PlacementError as error:
            if is_first or time.monotonic() > deadline:
                raise
            logger.warning("waiting for resources: %s", error)
            await asyncio.sleep(WAIT_S)
