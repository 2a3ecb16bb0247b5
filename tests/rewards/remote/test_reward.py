"""The client against real servers on the loopback: ours, and scripted ones that misbehave."""

import asyncio
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest

from rewards.registry import build
from rewards.remote.http_post import Retries
from rewards.remote.reward import Remote
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score
from tests.rewards.scripted_server import Reply

GROUP = [RewardRequest(prompt="p", response=f"response {i}", answer="7") for i in range(4)]


def answer(body: bytes, *, order: Callable[[list[dict]], list[dict]] = list) -> bytes:
    rows = json.loads(body)["requests"]
    scores = [{"id": r["id"], "value": float(r["response"][-1])} for r in rows]
    return json.dumps({"version": 1, "scores": order(scores)}).encode()


def client(url: str, **params: object) -> Remote:
    return build("remote", {"url": url, "form": "json", "first_wait_s": 0.01, **params})


def values(scores: list[Score]) -> list[float | None]:
    return [score.value for score in scores]


def test_scores_of_a_server_that_answers_out_of_order(serve: Callable[[Reply], str]) -> None:
    url = serve(lambda _, __, body: (200, answer(body, order=lambda rows: rows[::-1])))
    assert values(asyncio.run(client(url)(GROUP))) == [0.0, 1.0, 2.0, 3.0]


def test_a_failing_server_is_tried_again(serve: Callable[[Reply], str]) -> None:
    statuses = [503, 500, 429, 200]
    seen: list[int] = []

    def reply(call: int, _: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        seen.append(call)
        return statuses[call], answer(body)

    assert values(asyncio.run(client(serve(reply))(GROUP))) == [0.0, 1.0, 2.0, 3.0]
    assert seen == [0, 1, 2, 3]


def test_a_server_that_keeps_failing_is_given_up(serve: Callable[[Reply], str]) -> None:
    url = serve(lambda *_: (503, b"overloaded"))
    with pytest.raises(RewardError, match="failed 3 times; the last time: status 503: overloaded"):
        asyncio.run(client(url, retries=2)(GROUP))


def test_a_slow_server_times_out_and_is_tried_again(serve: Callable[[Reply], str]) -> None:
    released = threading.Event()

    def reply(call: int, _: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        if call == 0:
            released.wait(20)
        return 200, answer(body)

    url = serve(reply)
    assert values(asyncio.run(client(url, timeout_s=0.3)(GROUP))) == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(RewardError, match="failed 5 times; the last time: ConnectError"):
        asyncio.run(client("http://127.0.0.1:1")(GROUP))
    released.set()


def test_a_refusal_is_not_tried_again(serve: Callable[[Reply], str]) -> None:
    calls: list[int] = []

    def reply(call: int, *_: object) -> tuple[int, bytes]:
        calls.append(call)
        return 401, b"wrong or no token"

    with pytest.raises(RewardError, match="status 401: wrong or no token"):
        asyncio.run(client(serve(reply))(GROUP))
    assert calls == [0]


def test_the_token_comes_from_the_environment(
    serve: Callable[[Reply], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(_: int, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        allowed = handler.headers["Authorization"] == "Bearer secret-1"
        return (200, answer(body)) if allowed else (401, b"no")

    url = serve(reply)
    monkeypatch.setenv("TEST_REWARD_TOKEN", "secret-1")
    reward = client(url, token_env="TEST_REWARD_TOKEN")
    assert values(asyncio.run(reward(GROUP))) == [0.0, 1.0, 2.0, 3.0]
    monkeypatch.delenv("TEST_REWARD_TOKEN")
    with pytest.raises(RewardError, match="TEST_REWARD_TOKEN is not set"):
        client(url, token_env="TEST_REWARD_TOKEN")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "4 of 4 are missing"),
        ([{"id": 0, "value": 1.0}] * 4, "id 0 came twice"),
        ([{"id": 9, "value": 1.0}], "id 9 is none"),
        ([{"id": True, "value": 1.0}], "id True is none"),
        ([{"id": i, "value": "much"} for i in range(4)], "scores.0.value"),
        ([{"id": i, "value": float("nan")} for i in range(4)], "value of id 0 is nan"),
        (
            [{"id": i, "value": 1.0, "turn_rewards": [1, float("inf")]} for i in range(4)],
            r"turn_rewards\[1\] of id 0 is inf",
        ),
    ],
)
def test_an_answer_without_one_score_per_request_is_an_error(
    serve: Callable[[Reply], str], scores: list[dict], message: str
) -> None:
    body = json.dumps({"version": 1, "scores": scores}).encode()
    with pytest.raises(RewardError, match=message):
        asyncio.run(client(serve(lambda *_: (200, body)))(GROUP))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"version": 2, "scores": []}'])
def test_an_answer_of_another_kind_is_an_error(serve: Callable[[Reply], str], body: bytes) -> None:
    with pytest.raises(RewardError, match="reward 'remote'"):
        asyncio.run(client(serve(lambda *_: (200, body)))(GROUP))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:80", "no http:// or https://"),
        ("http://user:word@localhost", "environment variable"),
        ("http://a\x00b", "cannot be read"),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        client(url)


def test_waits_double_up_to_their_limit_and_follow_the_server() -> None:
    retries = Retries(count=9, first_wait_s=1.0, longest_wait_s=8.0)
    for attempt, limit in enumerate([1, 2, 4, 8, 8, 8]):
        waits = [retries.wait_s(attempt) for _ in range(200)]
        assert 0 <= min(waits) < limit / 2 < max(waits) <= limit
    assert 5.0 <= retries.wait_s(0, asked_s=5.0) <= 8.0
    assert retries.wait_s(0, asked_s=1e9) == 8.0
