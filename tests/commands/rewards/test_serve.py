"""`rlstack rewards serve` as a process of its own, asked by the reward `remote`."""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from rewards.registry import build
from rewards.remote.reward import Remote
from rlstack.commands.rewards.serve import add_arguments, run
from rlstack.errors import ConfigError, RewardError
from rlstack.types import RewardRequest

CODE = """
import argparse, sys
from rlstack.commands.rewards.serve import add_arguments, run
parser = argparse.ArgumentParser()
add_arguments(parser)
run(parser.parse_args(sys.argv[1:]))
"""


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_a_served_reward_judges_for_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("TEST_SERVE_TOKEN", "served")
    options = ["exact_match", "--params", '{"ignore_case": true}', "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-c", CODE, *options, "--token-env", "TEST_SERVE_TOKEN"],
        env=dict(os.environ),
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(server, url)
        reward = build("remote", {"url": url, "token_env": "TEST_SERVE_TOKEN"})
        assert isinstance(reward, Remote)
        group = [
            RewardRequest(prompt="p", response=text, answer=reference)
            for text, reference in [("Yes", "yes"), ("no", "yes"), ("yes", None)]
        ]
        scores = asyncio.run(reward(group))
        assert [score.value for score in scores] == [1.0, 0.0, None]
        with pytest.raises(RewardError, match="status 401"):
            asyncio.run(Remote(url=url)(group))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the server does not answer")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["exact_match", "--params", "{"], ConfigError, "is not JSON"),
        (["exact_match", "--params", "[]"], ConfigError, "components.0.params"),
        (["exact_match", "--workers", "0"], ConfigError, "num_workers"),
        (["exact_match", "--host", "0.0.0.0"], RewardError, "without a token"),
        (["exakt_match"], RewardError, "Did you mean 'exact_match'"),
    ],
)
def test_options_that_are_wrong(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(arguments(*words, "--token-env", "NOT_SET_ANYWHERE"))
