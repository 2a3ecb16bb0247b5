"""The HTTP side of `rlstack rewards serve`: scores groups for the reward `remote`.

Knows the protocol of `rewards.remote.wire`, the token and the limits; who judges is given to it.
"""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from rewards.remote.wire import (
    CONTENT_TYPES,
    VERSION,
    Format,
    WireError,
    decode_requests,
    encode_scores,
)
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Judge = Callable[[Sequence[RewardRequest]], Awaitable[Sequence[Score]]]
"""Judges one group; gives one score per request, in order."""

MAX_CONNECTIONS = 512
"""More are answered 503, which the client tries again."""


def check_exposure(host: str, token: str | None) -> None:
    """Whoever reaches an open server makes it run rewards, so beyond this machine it needs a token.

    Raises:
        RewardError: if there is no token and `host` is not a loopback address.
    """
    if token is None and not _is_loopback(host):
        raise RewardError(
            f"the server would listen on {host} without a token. Put a token into the environment "
            "variable that --token-env names, or use --host 127.0.0.1."
        )


def create_app(
    judge: Judge, *, token: str | None, max_bytes: int, max_requests: int
) -> "Starlette":
    """The application: `GET /health` and `POST /score`.

    token: what clients send as `Authorization: Bearer TOKEN`; None: nothing is asked.
    max_bytes, max_requests: largest body and most requests of one call.

    Answers 401 without the token, 413 over a limit, 415 for an unknown content type, 400 for a body
    that cannot be read; the text says what is wrong.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    forms: dict[str, Format] = {content: form for form, content in CONTENT_TYPES.items()}

    async def health(_: "Request") -> "Response":
        return JSONResponse({"status": "ok", "version": VERSION})

    async def score(request: "Request") -> "Response":
        # Before the body is read: a stranger must not cost memory.
        if not _is_authorised(request.headers.get("authorization"), token):
            return PlainTextResponse("wrong or no token", status_code=401)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in forms or "content-encoding" in request.headers:
            text = f"expected {' or '.join(forms)}, not compressed"
            return PlainTextResponse(text, status_code=415)
        form = forms[content_type]
        body = await _read(request, max_bytes=max_bytes)
        if body is None:
            return PlainTextResponse(f"more than {max_bytes} bytes", status_code=413)
        try:
            ids, requests = decode_requests(body, form)
        except WireError as error:
            return PlainTextResponse(str(error), status_code=400)
        if len(requests) > max_requests:
            return PlainTextResponse(f"more than {max_requests} requests", status_code=413)
        scores = await judge(requests) if requests else []
        return Response(encode_scores(ids, scores, form), media_type=CONTENT_TYPES[form])

    return Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/score", score, methods=["POST"]),
        ]
    )


async def _read(request: "Request", *, max_bytes: int) -> bytes | None:
    """The body; None as soon as it is too large."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            return None
        parts.append(part)
    return b"".join(parts)


def _is_authorised(header: str | None, token: str | None) -> bool:
    if token is None:
        return True
    # In constant time: how long a refusal takes must not say how much of the token was right.
    return hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
