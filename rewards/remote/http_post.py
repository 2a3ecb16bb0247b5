"""One POST that is tried again with exponential backoff and jitter, for rewards over a network."""

import asyncio
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlstack.errors import RewardError

if TYPE_CHECKING:
    import httpx

_RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often, and after which wait, a request is sent again."""

    count: int
    """Attempts after the first."""
    first_wait_s: float
    """Longest wait before the second attempt; it doubles with every further one."""
    longest_wait_s: float = 30.0

    def wait_s(self, attempt: int, *, asked_s: float = 0.0) -> float:
        """Seconds to wait after failed attempt 0, 1, ...; at least what the server asked for.

        Drawn evenly from 0 to the limit, so that clients that failed together do not return
        together. A server cannot ask for more than `longest_wait_s`.
        """
        limit = min(self.first_wait_s * 2**attempt, self.longest_wait_s)
        return max(random.uniform(0.0, limit), min(asked_s, self.longest_wait_s))


async def post(
    client: "httpx.AsyncClient",
    url: str,
    content: bytes,
    *,
    headers: dict[str, str],
    retries: Retries,
) -> "httpx.Response":
    """The first answer with a status of success.

    Tried again: no connection, a time-out, and the statuses 408, 429, 500, 502, 503 and 504.

    Raises:
        RewardError: if the answer has another status, or the last attempt failed; the message has
            the start of the answer and never a header.
    """
    import httpx

    problem = ""
    for attempt in range(retries.count + 1):
        asked_s = 0.0
        try:
            response = await client.post(url, content=content, headers=headers)
        except httpx.TransportError as error:
            problem = f"{type(error).__name__}: {error}".rstrip(": ")
        except httpx.HTTPError as error:  # an answer that cannot be read: a redirect loop, bad gzip
            raise RewardError(f"{url}: {type(error).__name__}: {error}") from error
        else:
            if response.is_success:
                return response
            problem = f"status {response.status_code}: {response.text[:_SHOWN_CHARS]}"
            if response.status_code not in _RETRIED_STATUS:
                raise RewardError(f"{url} answered with {problem}")
            asked_s = _asked_wait_s(response)
        if attempt < retries.count:
            await asyncio.sleep(retries.wait_s(attempt, asked_s=asked_s))
    raise RewardError(f"{url} failed {retries.count + 1} times; the last time: {problem}")


def secret_from_environment(variable: str | None) -> str | None:
    """What the environment variable holds; None if none is named.

    Raises:
        RewardError: if it is not set.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise RewardError(
            f"the environment variable {variable} is not set. It holds the token of the server; "
            f"export {variable} on every node that runs rewards."
        )
    return secret


def check_url(reward: str, url: str) -> None:
    """Accept `http(s)://host...` without a password in it.

    Raises:
        RewardError: if it is anything else.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise RewardError(f"reward {reward!r}: url {url!r} cannot be read: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise RewardError(
            f"reward {reward!r}: url {url!r} has no http:// or https:// and host; for example "
            "http://127.0.0.1:8000"
        )
    if parsed.userinfo:
        raise RewardError(
            f"reward {reward!r}: the url holds a user name or a password, which would be stored "
            "with the run. Put the token into an environment variable and name that variable."
        )


def _asked_wait_s(response: "httpx.Response") -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0
