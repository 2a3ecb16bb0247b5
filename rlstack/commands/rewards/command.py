"""`rlstack rewards`: list rewards and environments, try a reward on a file's rows, start a new one.

Works on the core package alone: the scorer processes need neither Ray nor an engine.
"""

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np

from rewards.load import register_rewards
from rewards.registry import REWARDS, ROW
from rlstack.commands.rewards import reliability
from rlstack.commands.rewards.list import listing
from rlstack.commands.rewards.new import write_new_reward
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.data.values import RowError, answer_text, to_messages
from rlstack.errors import DataError
from rlstack.types import FinishReason, RewardRequest, Score

ROWS_SHOWN = 20
BINS = 10
BAR_WIDTH = 40
OWN_KEYS = frozenset({"id", "messages", *RewardRequest.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class RowResult:
    """What `--json` writes for one row, in order of the file."""

    id: Any
    score: float | None
    parts: Mapping[str, float]
    error: str | None
    seconds: float
    """For a batched reward, the row's share of its group."""


def run(arguments: Sequence[str]) -> None:
    """Carry out `rlstack rewards ARGUMENTS`.

    Raises:
        RewardError: if a reward, a plugin or a parameter is wrong.
        DataError: naming `file:line`, if rows cannot be read.
        SystemExit: if the arguments are wrong.
    """
    if arguments[:1] == ["serve"]:
        _serve(arguments[1:])
        return
    options = _parser().parse_args(arguments)
    match options.command:
        case "list":
            print("\n".join(listing(options.plugin)))
        case "test":
            _test(options)
        case "reliability":
            reliability.run(options)
        case _:
            write_new_reward(options.name, directory=options.directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlstack rewards", description=(__doc__ or "").strip())
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="list|test|new|serve|reliability"
    )
    plugin = argparse.ArgumentParser(add_help=False)
    plugin.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE_OR_FILE", help="may be repeated"
    )
    commands.add_parser(
        "list",
        parents=[plugin],
        help="every reward and environment: source, parameters, meaning",
    )
    test = commands.add_parser(
        "test",
        parents=[plugin],
        help="score the rows of a JSON lines file",
        description="Rows are {id, prompt or messages, response, answer, data_source, reward, "
        "metadata, response_tokens, max_response_tokens, finish_reason}; response is needed, other "
        "keys become metadata. A batched reward judges neighbouring rows with one prompt together.",
    )
    test.add_argument("name", help="a reward, or row: the one that each row names")
    test.add_argument("--rows", type=Path, required=True, metavar="FILE")
    test.add_argument("--params", type=_json_object, default={}, metavar="JSON")
    test.add_argument("--json", action="store_true", help="one JSON object a row")
    test.add_argument("--timeout-s", type=_positive(float), default=10.0, metavar="S")
    test.add_argument("--memory-gib", type=_positive(float), default=16.0, metavar="GIB")
    test.add_argument("--num-workers", type=_positive(int), default=2, metavar="N")
    new = commands.add_parser("new", help="write a plugin and its test")
    new.add_argument("name")
    new.add_argument("--directory", type=Path, default=Path(), metavar="DIR")
    commands.add_parser("serve", help="put a reward behind HTTP (needs rlstack[remote])")
    reliability.add_arguments(
        commands.add_parser(
            "reliability", help="how far a reward agrees with true scores; recommends a filtration"
        )
    )
    return parser


def _serve(arguments: Sequence[str]) -> None:
    # Here, because it needs a web server, which the core does without.
    from rlstack.commands.rewards import serve as serve_rewards

    parser = argparse.ArgumentParser(prog="rlstack rewards serve")
    serve_rewards.add_arguments(parser)
    serve_rewards.run(parser.parse_args(arguments))


def _json_object(text: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected an object like {{}}, got {text}")
    return cast(dict[str, Any], value)


def _positive(kind: type[float]) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
        return value

    return parse


def _test(options: argparse.Namespace) -> None:
    # Here, because everything else works without: the processes of a run are what is tried.
    from workers.scoring.pool import ScorerPool

    register_rewards(options.plugin)
    batched = options.name != ROW and REWARDS.info(options.name).batched
    rows = read_rows(options.rows)
    config = RewardConfig(
        components=(RewardComponent(name=options.name, params=options.params),),
        plugins=tuple(options.plugin),
        num_workers=options.num_workers,
        timeout_s=options.timeout_s,
        memory_gib=options.memory_gib,
    )
    pool = ScorerPool(config, row_rewards=_row_rewards(options.name, rows))
    slots = asyncio.Semaphore(options.num_workers)

    async def judge(members: Sequence[tuple[Any, RewardRequest]]) -> list[RowResult]:
        # One group for each process: the clock must not run while a group waits for its turn.
        async with slots:
            start = perf_counter()
            scores = await pool.score_arrived([request for _, request in members], step=0)
            seconds = (perf_counter() - start) / len(members)
        return [
            _row_result(name, score, seconds)
            for (name, _), score in zip(members, scores, strict=True)
        ]

    async def judge_all() -> list[RowResult]:
        await pool.ready()
        groups = (
            [list(members) for _, members in groupby(rows, key=lambda row: _prompt(row[1]))]
            if batched
            else [[row] for row in rows]
        )
        judged = await asyncio.gather(*(judge(group) for group in groups))
        return [result for group in judged for result in group]

    try:
        results = asyncio.run(judge_all())
    finally:
        pool.close()
    if options.json:
        for result in results:
            print(json.dumps(asdict(result), ensure_ascii=False))
    else:
        print("\n".join(summary(results)))


def _prompt(request: RewardRequest) -> Any:
    return request.prompt, request.messages


def _row_rewards(name: str, rows: Sequence[tuple[Any, RewardRequest]]) -> set[str]:
    return {r.reward for _, r in rows if r.reward is not None} if name == ROW else set()


def _row_result(name: Any, score: Score, seconds: float) -> RowResult:
    error = "; ".join(score.errors) or None
    return RowResult(name, score.value, score.parts, error, round(seconds, 6))


def read_rows(path: Path) -> list[tuple[Any, RewardRequest]]:
    """The rows of a JSON lines file with their ids; a row without one has its line number.

    Raises:
        DataError: naming each bad row with the reason, or the file if it cannot be read or is
            empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None
    rows: list[tuple[Any, RewardRequest]] = []
    bad: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            if not isinstance(row, dict):
                raise RowError("not an object", "a row is {prompt, response, answer, ...}")
            fields = cast(dict[str, Any], row)
            rows.append((fields.get("id", number), to_request(fields)))
        except (RowError, json.JSONDecodeError, RecursionError) as error:
            bad.append(f"{path}:{number}: {error}")
    if bad:
        raise DataError("\n".join([f"{len(bad)} of {len(bad) + len(rows)} rows are bad:", *bad]))
    if not rows:
        raise DataError(f"{path}: no rows; write one JSON object a line.")
    return rows


def to_request(row: Mapping[str, Any]) -> RewardRequest:
    """A row of `rlstack rewards test` as the reward will see it.

    Raises:
        RowError: if a field is missing or has the wrong type.
    """
    if row.get("response") is None:
        raise RowError("no response", "a row needs the text that is to be judged: response")
    for name in ("prompt", "response", "data_source", "reward"):
        if name == "prompt" and isinstance(row.get(name), list):
            continue
        if row.get(name) is not None and not isinstance(row[name], str):
            raise RowError(f"malformed {name}", f"got {row[name]!r}; expected text")
    for name in ("response_tokens", "max_response_tokens"):
        if not isinstance(row.get(name, 0), int):
            raise RowError(f"malformed {name}", f"got {row[name]!r}; expected a whole number")
    prompt = row.get("prompt") or ""
    turns = prompt if isinstance(prompt, list) else row.get("messages")
    messages = () if turns is None else to_messages(turns, column="messages")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise RowError("malformed metadata", f"got {metadata!r}; expected an object")
    finish = row.get("finish_reason", FinishReason.STOP)
    if finish not in list(FinishReason):
        raise RowError("malformed finish_reason", f"got {finish!r}; expected stop or length")
    answer = row.get("answer")
    return RewardRequest(
        prompt=prompt if isinstance(prompt, str) else "\n".join(m.content for m in messages),
        response=row["response"],
        answer=None if answer is None else answer_text(answer, column="answer"),
        data_source=row.get("data_source") or "",
        reward=row.get("reward"),
        metadata={**{k: v for k, v in row.items() if k not in OWN_KEYS}, **metadata},
        messages=messages,
        response_tokens=row.get("response_tokens", 0),
        max_response_tokens=row.get("max_response_tokens", 0),
        finish_reason=FinishReason(finish),
    )


def summary(results: Sequence[RowResult]) -> list[str]:
    """The lines that a person reads: rows, time per row, errors, distribution."""
    scores = [result.score for result in results if result.score is not None]
    errors = [(result.id, result.error) for result in results if result.error is not None]
    lines = [f"{'id':<24} {'score':>8} {'ms':>9}"]
    for result in results[:ROWS_SHOWN]:
        score = "unjudged" if result.score is None else f"{result.score:.4g}"
        lines.append(f"{result.id!s:<24} {score:>8} {1e3 * result.seconds:>9.2f}")
    if len(results) > ROWS_SHOWN:
        lines.append(f"... and {len(results) - ROWS_SHOWN} more; --json writes them all")
    times = 1e3 * np.array([result.seconds for result in results])
    middle, tail = np.percentile(times, [50, 99])
    lines += [
        "",
        f"rows: {len(results)}   judged: {len(scores)}   "
        f"unjudged: {len(results) - len(scores)}   with errors: {len(errors)}",
        f"time per row: median {middle:.2f} ms, p99 {tail:.2f} ms, longest {times.max():.2f} ms",
    ]
    if scores:
        lines.append(
            f"score: mean {np.mean(scores):.4g}, lowest {min(scores):.4g}, highest "
            f"{max(scores):.4g}"
        )
        lines += _distribution(scores)
    for error, count in Counter(error for _, error in errors).most_common(ROWS_SHOWN):
        first = next(name for name, other in errors if other == error)
        lines.append(f"error in {count} of {len(results)} rows, first {first}: {error}")
    return lines


def _distribution(scores: Sequence[float]) -> list[str]:
    """A bar for each value, or for each of `BINS` ranges where there are many values."""
    values = Counter(scores)
    if len(values) <= BINS:
        bars = [(f"{value:.4g}", count) for value, count in sorted(values.items())]
    else:
        counts, edges = np.histogram(scores, bins=BINS)
        bars = [
            (f"{low:.4g} .. {high:.4g}", int(count))
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
    most = max(count for _, count in bars)
    return [
        f"  {label:>20} {count:>7} {'#' * round(BAR_WIDTH * count / most)}" for label, count in bars
    ]
