"""Our reward server, run by uvicorn on the loopback."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence

import httpx
import msgpack
import pytest
import uvicorn

from rewards import builtin  # noqa: F401  (registers the shipped rewards)
from rewards.registry import build
from rewards.remote.server import check_exposure, create_app
from rewards.remote.wire import Format
from rlstack.errors import RewardError
from rlstack.types import FinishReason, RewardRequest, Score, Turn, TurnRecord

TOKEN = "a-long-token"
MAX_BYTES, MAX_REQUESTS = 20_000, 8
seen: list[Sequence[RewardRequest]] = []


async def judge(requests: Sequence[RewardRequest]) -> list[Score]:
    seen.append(requests)
    if requests[0].response == "explode":
        raise ValueError("inside the reward")
    return [
        Score(
            value=None if r.answer is None else float(r.response == r.answer),
            parts={"length": float(len(r.response))},
            turn_rewards=(0.25, 0.5) if r.response == "7" else (),
            extracted_answer=r.response,
            errors=("a warning",) if r.answer is None else (),
        )
        for r in requests
    ]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = create_app(judge, token=TOKEN, max_bytes=MAX_BYTES, max_requests=MAX_REQUESTS)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def post(url: str, body: bytes, **headers: str) -> httpx.Response:
    sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    return httpx.post(f"{url}/score", content=body, headers=sent | headers)


def body_of(*requests: dict) -> bytes:
    return json.dumps({"version": 1, "requests": list(requests)}).encode()


@pytest.mark.parametrize("form", ["msgpack", "json"])
def test_a_group_goes_through_the_client_and_comes_back(
    url: str, form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_REWARD_TOKEN", TOKEN)
    reward = build("remote", {"url": url, "form": form, "token_env": "TEST_REWARD_TOKEN"})
    group = [
        RewardRequest(
            prompt="añ\u2028",
            response=response,
            answer=reference,
            metadata={"cases": [{"stdin": "1"}]},
            response_tokens=3,
            finish_reason=FinishReason.LENGTH,
            turns=(
                TurnRecord(action="call", end=2, answer=Turn(observation="é", role="tool")),
                TurnRecord(action=response, end=3, answer=None),
            ),
        )
        for response, reference in [("7", "7"), ("8", "7"), ("", None)]
    ]
    scores = asyncio.run(reward(group))
    assert list(seen[-1]) == group
    assert [score.value for score in scores] == [1.0, 0.0, None]
    assert [score.turn_rewards for score in scores] == [(0.25, 0.5), (), ()]
    assert scores[2] == Score(
        value=None, parts={"length": 0.0}, extracted_answer="", errors=("a warning",)
    )


def test_health_needs_no_token(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "version": 1}


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer a-long-toke", TOKEN, "Bearer ñ"])
def test_without_the_token_nothing_is_judged(url: str, header: str) -> None:
    before = len(seen)
    answer = httpx.post(
        f"{url}/score",
        content=body_of({"id": 0, "prompt": "p", "response": "r"}),
        headers={"Content-Type": "application/json", "Authorization": header.encode()},
    )
    assert (answer.status_code, len(seen)) == (401, before)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not json"),
        (b"[" * 15_000, 400, "not json"),
        (b"[]", 400, "expected an object with a list 'requests'"),
        (b'{"requests": []}', 400, "version is None"),
        (body_of({"prompt": "p", "response": "r"}), 400, "needs an `id`"),
        (body_of(*[{"id": 1, "prompt": "p", "response": "r"}] * 2), 400, "two have the same"),
        (body_of({"id": 1, "prompt": "p"}), 400, "requests.0.response: Field required"),
        (body_of(*[{"id": i, "prompt": "", "response": ""} for i in range(9)]), 413, "8 requests"),
        (b" " * (MAX_BYTES + 1), 413, "more than 20000 bytes"),
        (body_of(), 200, '"scores": []'),
    ],
)
def test_bodies_that_are_refused(url: str, body: bytes, status: int, message: str) -> None:
    answer = post(url, body)
    assert answer.status_code == status
    assert message in answer.text


def test_a_body_without_its_length_is_limited_too(url: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    answer = httpx.post(
        f"{url}/score",
        content=endless(),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    assert answer.status_code == 413


def test_other_content_is_refused(url: str) -> None:
    assert post(url, b"x", **{"Content-Type": "application/x-pickle"}).status_code == 415
    assert post(url, b"x", **{"Content-Encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize("body", [b"\xc1", b"\x91" * 15_000, msgpack.packb({"version": 1})])
def test_msgpack_that_cannot_be_read(url: str, body: bytes) -> None:
    assert post(url, body, **{"Content-Type": "application/msgpack"}).status_code == 400


def test_a_reward_that_raises_is_the_servers_error(url: str) -> None:
    answer = post(url, body_of({"id": 0, "prompt": "p", "response": "explode"}))
    assert answer.status_code == 500
    assert "inside the reward" not in answer.text


def test_an_open_server_stays_on_this_machine() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_exposure(host, None)
    check_exposure("0.0.0.0", TOKEN)
    for host in ("0.0.0.0", "::", "10.0.0.1", "rewards.internal"):
        with pytest.raises(RewardError, match="without a token"):
            check_exposure(host, None)
