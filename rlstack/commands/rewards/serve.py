"""`rlstack rewards serve`: a reward of ours behind HTTP, for the reward `remote` on other machines.

Also how several runs share one reward that remembers (`episodic_memory`): the server holds the
memory, as long as it runs.
"""

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any

import uvicorn
from pydantic import ValidationError

from rewards.remote.server import MAX_CONNECTIONS, check_exposure, create_app
from rlstack.config.reward import RewardConfig
from rlstack.errors import ConfigError
from rlstack.types import RewardRequest, Score
from workers.scoring.pool import ScorerPool

TOKEN_ENV = "RLSTACK_REWARD_TOKEN"
_MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("name", help="registered reward, or row: the reward that each row names")
    parser.add_argument("--params", default="{}", help="its parameters, a JSON object")
    parser.add_argument("--plugin", action="append", default=[], help="module or .py file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8077)
    parser.add_argument(
        "--token-env",
        default=TOKEN_ENV,
        help="environment variable with the token that clients must send; needed beyond loopback",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that run the reward")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="longest for one response")
    parser.add_argument("--memory-gib", type=float, default=16.0, help="of one such process")
    parser.add_argument("--max-mib", type=int, default=64, help="largest body of a call")
    parser.add_argument("--max-requests", type=int, default=1024, help="most responses of a call")


def run(arguments: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: if an option is wrong.
        RewardError: if the reward is wrong, or the server would be open to other machines.
    """
    config = _config(arguments)
    token = os.environ.get(arguments.token_env, "").strip() or None
    serve(
        config,
        host=arguments.host,
        port=arguments.port,
        token=token,
        max_bytes=arguments.max_mib * _MIB,
        max_requests=arguments.max_requests,
    )


def serve(
    config: RewardConfig,
    *,
    host: str,
    port: int,
    token: str | None,
    max_bytes: int,
    max_requests: int,
) -> None:
    """Serve the composed reward of `config` on host:port until interrupted.

    Raises:
        RewardError: if the reward is wrong, or there is no token and `host` is not loopback.
        WorkerError: if the scorer processes cannot start.
    """
    check_exposure(host, token)
    pool = ScorerPool(config)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await pool.ready()
        yield

    async def judge(requests: Sequence[RewardRequest]) -> list[Score]:
        # A batched reward compares the responses to one prompt, which clients send side by side.
        groups = [list(members) for _, members in groupby(requests, key=attrgetter("prompt"))]
        scored = await asyncio.gather(*(pool.score_arrived(group, step=0) for group in groups))
        return [score for group in scored for score in group]

    app = create_app(judge, token=token, max_bytes=max_bytes, max_requests=max_requests)
    app.router.lifespan_context = lifespan
    try:
        uvicorn.run(
            app, host=host, port=port, log_level="warning", limit_concurrency=MAX_CONNECTIONS
        )
    finally:
        pool.close()


def _config(arguments: argparse.Namespace) -> RewardConfig:
    try:
        params = json.loads(arguments.params)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--params {arguments.params!r} is not JSON: {error}") from error
    try:
        return RewardConfig.model_validate(
            {
                "components": [{"name": arguments.name, "params": params}],
                "plugins": arguments.plugin,
                "num_workers": arguments.workers,
                "timeout_s": arguments.timeout_s,
                "memory_gib": arguments.memory_gib,
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"rewards serve, {place}: {first['msg']}") from None
