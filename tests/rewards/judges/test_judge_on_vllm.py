"""The judge against vLLM's own OpenAI-compatible server with a tiny random model."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import rewards.builtin  # noqa: F401
from rewards.registry import build
from rlstack.types import RewardRequest
from tests.tiny_model import write_tiny_model

START_TIMEOUT_S = 150.0
# Not the `vllm` command: it asks for the metadata of a package that the CPU build names otherwise.
COMMAND = (
    *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"),
    *("--served-model-name", "judge", "--dtype", "float32", "--enforce-eager"),
    *("--max-model-len", "4096", "--max-num-seqs", "4"),
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("judge_model")
    write_tiny_model(folder)
    # A character is a token, and the prompt of a judge has more than the tiny model's 512.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    url = f"http://127.0.0.1:{(port := free_port())}"
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*COMMAND, "--model", folder, "--port", str(port)],
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(server, url, log)
            yield f"{url}/v1"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"no answer after {START_TIMEOUT_S} s: {log.read_text()[-3000:]}")


@pytest.mark.real_stack
@pytest.mark.parametrize("rubric", [None, {"clarity": "easy to follow", "truth": "not false"}])
def test_a_request_is_accepted_and_its_answer_parsed(url: str, rubric: dict | None) -> None:
    # The schema makes even a random model write JSON, unless it is still reasoning at the limit.
    endpoint = {"url": url, "model": "judge", "max_tokens": 600, "temperature": 1.0}
    reward = build("judge", {"endpoint": endpoint, "rubric": rubric, "num_votes": 2})
    group = [RewardRequest(prompt="Name a prime.", response=text) for text in ("7", "8")]
    scores = asyncio.run(reward(group))
    assert reward.client.usage.tokens_in > 0
    assert reward.client.usage.tokens_out > 0
    for score in scores:
        print(score)
        assert not any("status" in error or "failed" in error for error in score.errors)
        assert score.value is None or 0.0 <= score.value <= 1.0
        assert score.value is not None or score.errors
