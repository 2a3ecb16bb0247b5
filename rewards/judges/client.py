"""Verdicts from a chat-completions endpoint: retries, cache, concurrency limit, cost counter."""

import hashlib
import json
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import (
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    with_config,
)

from rewards.judges.prompt import VerdictError
from rewards.remote.http_post import Retries, check_url, post, secret_from_environment
from rlstack.errors import RewardError

if TYPE_CHECKING:
    import httpx

_T = TypeVar("_T")

_MEMORY_ENTRIES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of the calls that were made; a cached answer costs none."""

    tokens_in: int = 0
    tokens_out: int = 0
    num_calls: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            tokens_in=self.tokens_in + other.tokens_in,
            tokens_out=self.tokens_out + other.tokens_out,
            num_calls=self.num_calls + other.num_calls,
        )


@dataclass(frozen=True, slots=True)
class Verdict(Generic[_T]):
    """What the judge said, None if it could not be read, and what asking cost."""

    value: _T | None
    usage: Usage
    problem: str | None = None


class VerdictCache:
    """Answers by request: in a folder that processes share, or the newest 10,000 in memory.

    key: secret of this cache, for fences: kept with the answers, because a request holds its fence.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._memory: OrderedDict[str, str] = OrderedDict()
        self.key = secrets.token_bytes(16)
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            key_file = directory / "fence.key"
            # Whoever comes first decides; link() fails if the file is there.
            _write_new(key_file, self.key.hex())
            self.key = bytes.fromhex(key_file.read_text())

    def get(self, request: bytes) -> str | None:
        """The answer to the request, if it is known."""
        name = hashlib.sha256(request).hexdigest()
        if self._directory is None:
            return self._memory.get(name)
        try:
            return self._path(self._directory, name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def put(self, request: bytes, answer: str) -> None:
        """Remember an answer."""
        name = hashlib.sha256(request).hexdigest()
        if self._directory is None:
            self._memory[name] = answer
            if len(self._memory) > _MEMORY_ENTRIES:
                self._memory.popitem(last=False)
            return
        path = self._path(self._directory, name)
        path.parent.mkdir(exist_ok=True)
        _write_new(path, answer)

    @staticmethod
    def _path(directory: Path, name: str) -> Path:
        return directory / name[:2] / f"{name}.txt"


def _write_new(path: Path, text: str) -> None:
    """Write the file whole, unless it is there already."""
    with NamedTemporaryFile("w", dir=path.parent, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            os.link(file.name, path)
        except FileExistsError:
            return


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the judge is and how it is asked; the parameter `endpoint` of the judges."""

    url: str
    """An OpenAI-compatible endpoint up to and with `/v1`, such as http://host:8000/v1."""
    model: str
    """Its name there."""
    api_key_env: str | None = None
    """The environment variable that holds the key; None: no key."""
    structured: bool = True
    """Ask the server to hold the model to the JSON schema; off where it cannot."""
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 1024
    """Longest verdict."""
    timeout_s: PositiveFloat = 60.0
    """For one attempt; `reward.timeout_s` must cover all attempts and waits of a group."""
    retries: NonNegativeInt = 4
    """Further attempts after a lost connection, a time-out, 429 or 5xx."""
    first_wait_s: PositiveFloat = 1.0
    """Longest wait before the first of them; it doubles each time."""
    max_concurrent: PositiveInt = 16
    """Calls under way at once, per scorer process."""
    cache_dir: str | None = None
    """Folder of answers, kept over runs; None: the newest 10,000 in memory."""
    price_in: NonNegativeFloat = 0.0
    """Money per million tokens of prompts, for the part `cost`."""
    price_out: NonNegativeFloat = 0.0
    """Money per million tokens of verdicts."""


class JudgeClient:
    """Asks one model of one endpoint; `usage` counts all calls so far.

    Raises:
        RewardError: from construction, if the url is wrong or the key is not set.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        check_url("judge", endpoint.url)
        self.endpoint = endpoint
        self.cache = VerdictCache(None if endpoint.cache_dir is None else Path(endpoint.cache_dir))
        self.usage = Usage()
        self._api_key = secret_from_environment(endpoint.api_key_env)
        self._retries = Retries(count=endpoint.retries, first_wait_s=endpoint.first_wait_s)

    def cost_parts(self, usage: Usage) -> dict[str, float]:
        """Tokens in and out and, where there are prices, the cost, as parts of a score."""
        parts = {"tokens_in": float(usage.tokens_in), "tokens_out": float(usage.tokens_out)}
        prices = (self.endpoint.price_in, self.endpoint.price_out)
        if any(prices):
            cost = usage.tokens_in * prices[0] + usage.tokens_out * prices[1]
            parts["cost"] = cost / 1e6
        return parts

    def open(self) -> "httpx.AsyncClient":
        """A connection pool for the calls of one group; it belongs to the running event loop."""
        import httpx

        limits = httpx.Limits(max_connections=self.endpoint.max_concurrent)
        # The pool is the concurrency limit: waiting for a connection must not time out.
        timeout = httpx.Timeout(self.endpoint.timeout_s, pool=None)
        return httpx.AsyncClient(timeout=timeout, limits=limits)

    async def ask(
        self,
        client: "httpx.AsyncClient",
        prompt: str,
        *,
        schema: dict[str, Any],
        parse: Callable[[str], _T],
        vote: int,
    ) -> Verdict[_T]:
        """One verdict; `vote` is its number among those on one prompt. An answer that cannot be
        parsed is asked for once more, with the reason.

        Raises:
            RewardError: if the endpoint refuses, keeps failing, or answers in another protocol.
        """
        messages = [{"role": "user", "content": prompt}]
        usage, problem = Usage(), ""
        for _ in range(2):
            request = self._request(messages, schema=schema, vote=vote)
            cache_key = self.endpoint.url.encode() + request
            answer = self.cache.get(cache_key)
            known = answer is not None
            if answer is None:
                answer, spent = await self._call(client, request)
                usage += spent
                self.usage += spent
            try:
                value = parse(answer)
            except VerdictError as error:
                problem = str(error)
                messages = [
                    messages[0],
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": f"Not accepted: {problem}. Answer with JSON only."},
                ]
                continue
            if not known:
                self.cache.put(cache_key, answer)
            return Verdict(value, usage)
        return Verdict(None, usage, f"no verdict: {problem}")

    def _request(
        self, messages: list[dict[str, str]], *, schema: dict[str, Any], vote: int
    ) -> bytes:
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": messages,
            "temperature": self.endpoint.temperature,
            "max_tokens": self.endpoint.max_tokens,
            "seed": vote,
        }
        if self.endpoint.structured:
            form = {"name": "verdict", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return json.dumps(body).encode()

    async def _call(self, client: "httpx.AsyncClient", request: bytes) -> tuple[str, Usage]:
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        url = f"{self.endpoint.url.rstrip('/')}/chat/completions"
        response = await post(client, url, request, headers=headers, retries=self._retries)
        try:
            body = response.json()
            content = body["choices"][0]["message"]["content"]
            counted = body.get("usage") or {}
            usage = Usage(
                tokens_in=int(counted.get("prompt_tokens") or 0),
                tokens_out=int(counted.get("completion_tokens") or 0),
                num_calls=1,
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RewardError(f"{url}: the answer is no chat completion: {error!r}") from error
        # A model that only thought, or only refused, has no content.
        return content if isinstance(content, str) else "", usage
