"""Messages come out of a stream as they went in, however it cuts them."""

import pickle

import pytest

from workers.children.messages import Frames, Reply, Request, TimedOut, frame

MESSAGES = [
    None,
    "a text",
    Request(1, 2.5, pickle.dumps("content")),
    Reply(1, TimedOut(2.5)),
    Reply(2, b"x" * 100_000),
]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 4096, 10**6])
def test_messages_arrive_whole_and_in_order(size: int) -> None:
    data = b"".join(frame(message) for message in MESSAGES)
    frames = Frames()
    found = [m for at in range(0, len(data), size) for m in frames.feed(data[at : at + size])]
    assert found == MESSAGES
    assert isinstance(found[2], Request)


def test_a_message_is_held_until_its_last_byte() -> None:
    frames = Frames()
    data = frame("text")
    assert list(frames.feed(data[:-1])) == []
    assert list(frames.feed(data[-1:])) == ["text"]
