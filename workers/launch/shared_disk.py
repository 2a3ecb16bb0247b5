"""Whether every node of a cluster sees the run directory, before anything is started on them."""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlstack.errors import PlacementError
from workers.launch.cluster import node_name

SEEN_WITHIN_S = 10.0
"""A network file system may show a new file late."""
ANSWER_WITHIN_S = 60.0
"""For a process to start on a node."""


SILENT = "no answer"


def read_token(file: str) -> str | None:
    """What a node finds in `file`; None: it does not see it."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            return Path(file).read_text()
        time.sleep(0.2)
    return None


async def check_shared(run_dir: Path, *, read: Callable[[str], str | None] = read_token) -> None:
    """Let every node on which ranks may be placed read what is written to `run_dir` now.

    Raises:
        PlacementError: naming the nodes that do not see it, or do not answer.
    """
    token = secrets.token_hex(16)
    file = run_dir / f".token_{token}"
    file.write_text(token)
    try:
        # Nothing is placed on a node without CPUs, such as a head that only manages.
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        found = await asyncio.gather(*(_ask(node, read, str(file)) for node in nodes))
    finally:
        file.unlink(missing_ok=True)
    wrong = [
        f"{node_name(node)} {'is silent' if answer is SILENT else 'sees nothing'}"
        for node, answer in zip(nodes, found, strict=True)
        if answer != token
    ]
    if wrong:
        raise PlacementError(
            f"run_dir: {run_dir} must be on a disk that all nodes share, since ranks write "
            f"checkpoints to it. A file was written there just now: {', '.join(wrong)}. Mount the "
            "same disk on every node, or choose a run_dir on one that is"
        )


async def _ask(node: dict[str, Any], read: Callable[[str], str | None], file: str) -> str | None:
    """What the node reads; `SILENT`, if it hangs or has died."""
    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    answer: Any = ray.remote(read).options(num_cpus=0, scheduling_strategy=here).remote(file)
    try:
        return await asyncio.wait_for(answer, ANSWER_WITHIN_S)
    except (TimeoutError, RayError):
        return SILENT
