"""Reward `remote`: any reward behind HTTP, such as one of ours under `rlstack rewards serve`."""

from collections.abc import Sequence

from pydantic import NonNegativeInt, PositiveFloat

from rewards.registry import register
from rewards.remote.http_post import Retries, check_url, post, secret_from_environment
from rewards.remote.wire import CONTENT_TYPES, Format, WireError, decode_scores, encode_requests
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score


@register("remote", batched=True, requires=("httpx", "msgpack"))
class Remote:
    """The scores that a reward server gives to a group, in the order of the group.

    url: where the server is, `http://host:port`; `/score` is added. Use https or a private network:
        the token and the texts travel as they are.
    token_env: the environment variable that holds the server's token; None: the server asks for
        none. A token is never part of the configuration.
    timeout_s: seconds for one attempt. `reward.timeout_s` must cover all attempts and waits.
    retries, first_wait_s: further attempts after a lost connection, a time-out or an overloaded
        server, and the longest wait before the first of them, doubled each time.
    form: msgpack, or json for servers that speak nothing else.

    Raises:
        RewardError: from a call, if the server cannot be reached, refuses, or answers with
            something else than one score per request.
    """

    def __init__(
        self,
        *,
        url: str,
        token_env: str | None = None,
        timeout_s: PositiveFloat = 30.0,
        retries: NonNegativeInt = 4,
        first_wait_s: PositiveFloat = 0.5,
        form: Format = "msgpack",
    ) -> None:
        check_url("remote", url)
        self._url = f"{url.rstrip('/')}/score"
        self._form: Format = form
        self._timeout_s = timeout_s
        self._retries = Retries(count=retries, first_wait_s=first_wait_s)
        self._headers = {"Content-Type": CONTENT_TYPES[form], "Accept": CONTENT_TYPES[form]}
        token = secret_from_environment(token_env)
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    async def __call__(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """Send the group in one call."""
        import httpx

        try:
            body = encode_requests(requests, self._form)
            # A client belongs to one event loop, and the caller's may be a new one each time.
            async with httpx.AsyncClient(timeout=self._timeout_s) as client:
                response = await post(
                    client, self._url, body, headers=self._headers, retries=self._retries
                )
            return decode_scores(response.content, self._form, count=len(requests))
        except WireError as error:
            raise RewardError(f"reward 'remote', {self._url}: {error}") from error
