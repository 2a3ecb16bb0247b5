"""What a reward server and its clients say to each other, as msgpack or JSON.

`POST /score` takes `{"version": 1, "requests": [{"id": 0, "prompt": ..., "response": ..., ...}]}`,
the fields of `RewardRequest` beside `id`, and answers `{"version": 1, "scores": [{"id": 0, "value":
..., "parts": {...}, "turn_rewards": [...], "extracted_answer": ..., "errors": [...]}]}`; all but
`id` and `value` may be left out. One call is one group: the responses to one prompt. Scores may
come in any order; the ids say which is whose.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from rlstack.types import RewardRequest, Score

Format = Literal["msgpack", "json"]

CONTENT_TYPES: dict[Format, str] = {"msgpack": "application/msgpack", "json": "application/json"}
VERSION = 1


class WireError(ValueError):
    """A message cannot be written or read; the text says where and why."""


def encode_requests(requests: Sequence[RewardRequest], form: Format) -> bytes:
    """The body of `POST /score`, ids counting from 0.

    Raises:
        WireError: if metadata holds something that the format does not know.
    """
    rows = [
        {**asdict(request), "id": number, "finish_reason": request.finish_reason.value}
        for number, request in enumerate(requests)
    ]
    return _dump({"version": VERSION, "requests": rows}, form)


def decode_requests(body: bytes, form: Format) -> tuple[list[Any], list[RewardRequest]]:
    """The ids and the requests of a body.

    Raises:
        WireError: if it is not what `encode_requests` writes.
    """
    rows = _rows(body, form, key="requests")
    ids = [row.pop("id", None) for row in rows]
    if any(not isinstance(i, int | str) or isinstance(i, bool) for i in ids):
        raise WireError("requests: every request needs an `id`, a number or a text")
    if len(set(ids)) != len(ids):
        raise WireError("requests: two have the same `id`")
    return ids, _validated(_requests_adapter(), rows, key="requests")


def encode_scores(ids: Sequence[Any], scores: Sequence[Score], form: Format) -> bytes:
    """The answer to `POST /score`."""
    rows = [{"id": i, **asdict(score)} for i, score in zip(ids, scores, strict=True)]
    return _dump({"version": VERSION, "scores": rows}, form)


def decode_scores(body: bytes, form: Format, *, count: int) -> list[Score]:
    """The scores of `count` requests, in the order of the requests whatever theirs is.

    Raises:
        WireError: if the answer is not what `encode_scores` writes, has not exactly one score per
            request, or has a value that is not finite.
    """
    rows = _rows(body, form, key="scores")
    by_id: dict[Any, dict[str, Any]] = {}
    for row in rows:
        number = row.pop("id", None)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
            raise WireError(f"scores: id {number!r} is none of the {count} requests'")
        if number in by_id:
            raise WireError(f"scores: id {number} came twice")
        by_id[number] = row
    missing = [number for number in range(count) if number not in by_id]
    if missing:
        raise WireError(f"scores: {len(missing)} of {count} are missing, the first is {missing[0]}")
    ordered = [by_id[number] for number in range(count)]
    scores = _validated(_scores_adapter(), ordered, key="scores")
    for number, score in enumerate(scores):
        turns = {f"turn_rewards[{turn}]": reward for turn, reward in enumerate(score.turn_rewards)}
        for name, value in {"value": score.value, **score.parts, **turns}.items():
            if value is not None and not math.isfinite(value):
                raise WireError(f"scores: {name} of id {number} is {value}; expected a number")
    return scores


def _rows(body: bytes, form: Format, *, key: str) -> list[dict[str, Any]]:
    message = _load(body, form)
    if not isinstance(message, dict) or not isinstance(message.get(key), list):
        raise WireError(f"expected an object with a list {key!r}")
    if message.get("version") != VERSION:
        raise WireError(f"version is {message.get('version')!r}; this side speaks {VERSION}")
    rows: list[Any] = message[key]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise WireError(f"{key}: entry {number} is not an object")
    return rows


@cache
def _requests_adapter() -> TypeAdapter[list[RewardRequest]]:
    return TypeAdapter(list[RewardRequest])


@cache
def _scores_adapter() -> TypeAdapter[list[Score]]:
    return TypeAdapter(list[Score])


def _validated(adapter: TypeAdapter[Any], rows: list[dict[str, Any]], *, key: str) -> Any:
    try:
        return adapter.validate_python(rows)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise WireError(f"{key}.{place}: {first['msg']}") from None


def _dump(message: Mapping[str, Any], form: Format) -> bytes:
    try:
        if form == "json":
            return json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
        import msgpack

        packed = msgpack.packb(message, use_bin_type=True)
        assert packed is not None, "packb without a stream returns the bytes"
        return packed
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError) as error:
        raise WireError(f"cannot be written as {form}: {error}") from error


def _load(body: bytes, form: Format) -> Any:
    read: Callable[[bytes], Any]
    if form == "json":
        read = json.loads
    else:
        import msgpack

        read = msgpack.unpackb
    try:
        return read(body)
    # msgpack's errors share no base but Exception and ValueError; deep nesting is RecursionError.
    except (ValueError, RecursionError, TypeError) as error:
        raise WireError(f"not {form}: {type(error).__name__}: {error}") from error
