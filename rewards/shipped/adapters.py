"""Rewards `trl`, `verl`, `openrlhf`, `verifiers`: functions written for other systems, unchanged.

Each takes a reference to the user's function, `my_module:function` or `path/to/file.py:function`.
Numbers may come back as tensors or arrays; async functions are awaited.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from rewards.references import import_function, import_object
from rewards.registry import RewardResult, register
from rlstack.errors import RewardError
from rlstack.types import RewardRequest, Score

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
"""What datasets call the reference answer; TRL's functions ask for it by one of these names."""

_Params = Mapping[str, Any] | None


def _is_async(params: Mapping[str, Any]) -> bool:
    """Whether the user's function waits; one that computes must not hold up an event loop."""
    return inspect.iscoroutinefunction(import_function(params["function"]))


@register("trl", batched=True, concurrent=_is_async)
class TRLReward:
    """TRL's `reward_func(prompts, completions, **columns)`.

    function: the reference. params: keyword arguments of the user's own.

    Columns are the rows' metadata, each a list; the reference answer is given as `answer`,
    `solution` and `ground_truth`. Prompts and completions are conversations where the row is one
    and texts elsewhere. There are no token ids (`completion_ids`) and no trainer state.
    """

    def __init__(self, *, function: str, params: _Params = None) -> None:
        self._function = import_function(function)
        self._params = params or {}

    async def __call__(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        chat = bool(requests[0].messages)
        columns = {name: [r.answer for r in requests] for name in ANSWER_COLUMNS}
        names = dict.fromkeys(name for r in requests for name in r.metadata)
        columns |= {name: [r.metadata.get(name) for r in requests] for name in names}
        arguments = {
            **columns,
            **self._params,
            "prompts": [_conversation(r) if chat else r.prompt for r in requests],
            "completions": [_turn(r) if chat else r.response for r in requests],
        }
        return _numbers(await _call(self._function, arguments))


@register("verl", concurrent=_is_async)
class VerlReward:
    """verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`.

    function: the reference. params: keyword arguments of the user's own (verl's reward_kwargs).

    It returns a number, or a mapping whose `score` is the value and whose other numbers are parts;
    `pred`, if it is text, is the extracted answer. `extra_info` is the row's, or else its metadata.
    """

    def __init__(self, *, function: str, params: _Params = None) -> None:
        self._function = import_function(function)
        self._params = params or {}

    async def __call__(self, request: RewardRequest) -> RewardResult:
        metadata = request.metadata
        arguments = {
            "data_source": request.data_source,
            "solution_str": request.response,
            "ground_truth": request.answer,
            "extra_info": metadata.get("extra_info", metadata),
            **self._params,
        }
        result = await _call(self._function, arguments)
        if not isinstance(result, Mapping):
            return _number(result)
        found = cast(Mapping[str, Any], result)
        if "score" not in found:
            raise ValueError(f"the result has no 'score', only {', '.join(found) or 'nothing'}")
        others = {name: _number(value) for name, value in found.items() if name != "score"}
        prediction = found.get("pred")
        return Score(
            value=_number(found["score"]),
            parts={n: float(v) for n, v in others.items() if isinstance(v, int | float)},
            extracted_answer=prediction if isinstance(prediction, str) else None,
        )


@register("openrlhf", batched=True, concurrent=_is_async)
class OpenRLHFReward:
    """OpenRLHF's local `reward_func(queries, prompts, labels)`.

    function: the reference. params: keyword arguments of the user's own.

    A query is the prompt and the response together. It returns the rewards, or a mapping with
    `rewards`.
    """

    def __init__(self, *, function: str, params: _Params = None) -> None:
        self._function = import_function(function)
        self._params = params or {}

    async def __call__(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        arguments = {**self._params, **_queries(requests, "queries")}
        return _rewards(await _call(self._function, arguments))


@register("openrlhf_remote", batched=True)
def openrlhf_remote(requests: Sequence[RewardRequest], *, url: str) -> list[RewardResult]:
    """OpenRLHF's remote reward: POST {query, prompts, labels} as JSON, {rewards} comes back.

    url: http or https. The component's time-out limits the wait.
    """
    # Imported here: it is slow to import, and seldom needed.
    from json import dumps, loads
    from urllib.request import Request, urlopen

    if not url.startswith(("http://", "https://")):
        raise RewardError(f"openrlhf_remote: {url!r} is no http or https address.")
    body = dumps(_queries(requests, "query")).encode()
    with urlopen(Request(url, body, {"Content-Type": "application/json"})) as answer:
        return _rewards(loads(answer.read()))


@register("verifiers", concurrent=lambda _: False)
class VerifiersReward:
    """A `verifiers` rubric: weighted functions of prompt, completion, answer, state, info.

    function: reference to a rubric, to something that makes one when called, or to one function of
    a rubric. Every function is given those of `prompt`, `completion`, `answer`, `state`, `task`,
    `info` and `parser` that it declares; each value is a part. Functions that score a whole group
    are not supported.
    """

    def __init__(self, *, function: str) -> None:
        found = import_object(function)
        if (inspect.isfunction(found) and _asks_for_nothing(found)) or inspect.isclass(found):
            found = found()
        self._functions, self._weights = _rubric(function, found)
        self._parser = getattr(found, "parser", None)

    async def __call__(self, request: RewardRequest) -> RewardResult:
        chat = bool(request.messages)
        prompt = _conversation(request) if chat else request.prompt
        completion = _turn(request) if chat else request.response
        info = request.metadata.get("info", request.metadata)
        task = request.metadata.get("task", request.data_source or "default")
        given = {
            "prompt": prompt,
            "completion": completion,
            "answer": request.answer if request.answer is not None else "",
            "task": task,
            "info": info,
            "parser": self._parser,
        }
        # The functions of a rubric hand each other what they found in it.
        given["state"] = dict(given)
        parts: dict[str, float] = {}
        total = 0.0
        for function, weight in zip(self._functions, self._weights, strict=True):
            value = float(_number(await _call(function, given)))
            parts[function.__name__] = value
            total += weight * value
        return Score(value=total, parts=parts)


def _rubric(reference: str, found: Any) -> tuple[list[Callable[..., Any]], list[float]]:
    """The functions and weights of a rubric of any version of verifiers, or of one function."""
    if inspect.isfunction(found):
        return [found], [1.0]
    for functions, weights in (("funcs", "weights"), ("reward_funcs", "reward_weights")):
        if isinstance(getattr(found, functions, None), list):
            listed = list(getattr(found, functions))
            return listed, list(getattr(found, weights, None) or [1.0] * len(listed))
    raise RewardError(
        f"verifiers: {reference!r} is a {type(found).__name__}, which is neither a rubric (funcs "
        "and weights) nor a function."
    )


def _asks_for_nothing(function: Callable[..., Any]) -> bool:
    return not inspect.signature(function).parameters


async def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call with those arguments that the function declares; all of them if it takes `**kwargs`."""
    params = inspect.signature(function).parameters.values()
    takes_all = any(param.kind is inspect.Parameter.VAR_KEYWORD for param in params)
    names = {param.name for param in params}
    given = {name: value for name, value in arguments.items() if takes_all or name in names}
    result = function(**given)
    return await result if inspect.isawaitable(result) else result


def _conversation(request: RewardRequest) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in request.messages]


def _turn(request: RewardRequest) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": request.response}]


def _queries(requests: Sequence[RewardRequest], queries: str) -> dict[str, Any]:
    return {
        queries: [request.prompt + request.response for request in requests],
        "prompts": [request.prompt for request in requests],
        "labels": [request.answer for request in requests],
    }


def _rewards(result: Any) -> list[RewardResult]:
    if isinstance(result, Mapping):
        found = cast(Mapping[str, Any], result)
        if "rewards" not in found:
            raise ValueError(f"the result has no 'rewards', only {', '.join(found) or 'nothing'}")
        result = found["rewards"]
    return _numbers(result)


def _numbers(results: Any) -> list[RewardResult]:
    # Tensors and arrays know how to become lists; torch must not be imported for it.
    listed: Any = results.tolist() if hasattr(results, "tolist") else results
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise TypeError(f"expected a list of rewards, got {listed!r} ({type(listed).__name__})")
    return [_number(value) for value in cast(Sequence[Any], listed)]


def _number(value: Any) -> Any:
    """A scalar tensor or array as a number; anything else as it is."""
    return value.item() if hasattr(value, "item") else value
