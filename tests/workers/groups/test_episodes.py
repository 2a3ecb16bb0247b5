"""How episodes go and end: real environment processes, engines that answer by script."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlstack.batch import collate
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.data.observations import TurnRenderer
from rlstack.generation import GroupSampler
from rlstack.seeds import Domain
from rlstack.types import (
    FinishReason,
    GenerationRequest,
    Message,
    Prompt,
    Rollout,
    SamplingSettings,
    Turn,
)
from tests.chat_tokenizer import CHATML, EOS, CharTokenizer
from tests.workers.conftest import environment_pool
from tests.workers.fake_engine import FakeEngine, completion
from workers.environments.pool import EnvironmentPool
from workers.groups.engines import EngineGroup
from workers.groups.episodes import EpisodeEngines
from workers.scoring.pool import ScorerPool
from workers.specs import Completion, TokenRequest

TOKENIZER = CharTokenizer(CHATML)
OPENING = "\n<|im_start|>user\n"
CLOSING = "<|im_end|>\n<|im_start|>assistant\n"

PLUGIN = """
import os, time
from rewards.environments.registry import register_environment
from rlstack.types import Task, Turn

@register_environment("scripted")
class Scripted:
    def reset(self, task: Task) -> str | None:
        self.task = task
        if task.answer == "fails":
            raise LookupError("no such row")
        return "look" if task.answer == "look" else None

    def step(self, action: str) -> Turn:
        what, _, argument = action.partition(" ")
        if what == "wait":
            while not os.path.exists(argument):
                time.sleep(0.01)
        if what == "hang":
            time.sleep(60)
        return Turn(observation=f"<{argument}>", done=what == "done", reward=len(argument))
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvironmentPool]:
    path = tmp_path_factory.mktemp("plugins") / "scripted.py"
    path.write_text(PLUGIN)
    pool = environment_pool("scripted", {}, plugins=(str(path),), timeout_s=4.0)
    asyncio.run(pool.ready())
    yield pool
    pool.close()


class Script:
    """The n-th turn of prompt `id` says the n-th entry of its script; what it was given is kept."""

    def __init__(self, *scripts: list[str]) -> None:
        self.scripts = scripts
        self.contexts: list[str] = []
        self.limits: list[int] = []
        self.seeds: list[int] = []

    def __call__(self, request: TokenRequest, sampling: SamplingSettings) -> Completion:
        context = TOKENIZER.decode(request.token_ids)
        self.contexts.append(context)
        self.limits.append(sampling.max_response_tokens)
        self.seeds.append(request.seed)
        prompt = int(context.partition("prompt ")[2][0])
        turn = context.count("assistant\n") - 1
        text = self.scripts[prompt][turn]
        if len(text) >= sampling.max_response_tokens:
            text = text[: sampling.max_response_tokens]
            return completion(request, text, reason=FinishReason.LENGTH)
        return completion(request, text)


def request(index: int, *, answer: str | None = None) -> GenerationRequest:
    messages = (Message(role="user", content=f"prompt {index}"),)
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": messages[0].content}],
        tokenize=False,
        add_generation_prompt=True,
    )
    prompt = Prompt(
        prompt_id=str(index),
        data_source="d",
        text=text,
        token_ids=np.array(TOKENIZER.encode(text, add_special_tokens=False)),
        answer=answer,
        reward=None,
        metadata={},
        messages=messages,
    )
    return GenerationRequest(request_id=index, prompt=prompt, sample_index=0, seed=index)


def episode_engines(pool: EnvironmentPool, script: Script) -> EpisodeEngines:
    handles: Any = [FakeEngine(write=script)]
    group = EngineGroup(handles, replace=lambda *_: pytest.fail("none dies"), max_restarts=0)
    renderer = TurnRenderer(TOKENIZER, max_prompt_tokens=100, max_observation_tokens=50)
    return EpisodeEngines(group, pool, renderer, max_turns=3)


async def play(
    pool: EnvironmentPool,
    script: Script,
    *requests: GenerationRequest,
    max_response_tokens: int = 500,
    arrived: list[int] | None = None,
    on_arrival: Any = lambda: None,
) -> list[Rollout]:
    engines = episode_engines(pool, script)
    sampling = SamplingSettings(temperature=1.0, max_response_tokens=max_response_tokens)
    found: dict[int, Rollout] = {}
    async for number, rollout in engines.generate(requests, sampling):
        found[number] = rollout
        if arrived is not None:
            arrived.append(number)
        on_arrival()
    return [found[r.request_id] for r in requests]


def test_an_episode_turn_by_turn(pool: EnvironmentPool) -> None:
    script = Script(["say a", "done b"])
    (rollout,) = asyncio.run(play(pool, script, request(0)))
    assert rollout.finish_reason is FinishReason.STOP
    assert rollout.text == "done b"
    text = f"say a<|im_end|>{OPENING}<a>{CLOSING}done b<|im_end|>"
    assert TOKENIZER.decode(rollout.response_ids.tolist()) == text
    masked = TOKENIZER.decode(rollout.response_ids[~rollout.loss_mask].tolist())
    assert masked == f"{OPENING}<a>{CLOSING}"
    assert (rollout.logprobs == np.where(rollout.loss_mask, -1.0, 0.0)).all()
    assert set(rollout.policy_versions.tolist()) == {7}
    first, last = rollout.turns
    assert (first.action, last.action) == ("say a", "done b")
    assert first.answer is not None
    assert last.answer is not None
    assert (first.answer.reward, first.end) == (1.0, 6)
    assert (last.answer.done, last.end) == (True, len(rollout.response_ids))
    # The engine was given what it had written itself, and what was left of the limit.
    assert script.contexts[1].startswith(f"{script.contexts[0]}say a<|im_end|>")
    assert script.limits == [500, 500 - first.end - len(OPENING) - len("<a>") - (len(CLOSING) - 9)]
    assert len(set(script.seeds)) == 2
    again = Script(["say a", "done b"])
    asyncio.run(play(pool, again, request(0)))
    assert again.seeds == script.seeds


@pytest.fixture
def scorer() -> Iterator[ScorerPool]:
    components = (
        RewardComponent(name="environment", weight=0.5),
        RewardComponent(name="exact_match", weight=2.0),
    )
    scorer = ScorerPool(
        RewardConfig(
            components=components, plugins=(), num_workers=1, timeout_s=20.0, memory_gib=16
        )
    )
    yield scorer
    scorer.close()


def test_what_a_turn_earns_is_due_on_its_last_token(
    pool: EnvironmentPool, scorer: ScorerPool
) -> None:
    """`scripted` pays the length of what is said; the last answer is right."""
    prompts = [request(0, answer="done efg").prompt, request(1, answer="fails").prompt]
    groups = asyncio.run(
        GroupSampler(
            engines=episode_engines(pool, Script(["say a", "say bc", "done efg"], [])),
            scorer=scorer,
            seed=0,
        ).sample(
            prompts,
            num_samples=1,
            sampling=SamplingSettings(temperature=1.0, max_response_tokens=500),
            domain=Domain.ROLLOUT,
            numbers=(0, 1),
            version=0,
        )
    )
    score = groups[0].scores[0]
    assert (score.value, score.turn_rewards) == (0.5 * 6 + 2.0, (0.5, 1.0, 1.5))
    batch = collate(groups, pad_token_id=0)
    turns = batch.turn_rewards
    assert turns is not None
    ends = turns[0].nonzero().flatten()
    assert turns[0][ends].tolist() == [0.5, 1.0, 1.5]
    # Each action ends with the end-of-sequence token that was sampled.
    assert batch.token_ids[0][ends].tolist() == [EOS] * 3
    assert batch.loss_mask[0][ends].all()
    assert not turns[1].any()
    assert batch.rewards.isnan().tolist() == [False, True]


def test_too_many_turns(pool: EnvironmentPool) -> None:
    (rollout,) = asyncio.run(play(pool, Script(["say a", "say b", "say c"]), request(0)))
    assert rollout.finish_reason is FinishReason.TURNS
    assert len(rollout.turns) == 3
    assert rollout.turns[-1].answer is not None


def test_an_action_that_is_cut_is_not_answered(pool: EnvironmentPool) -> None:
    script = Script(["say a", "a long action that does not fit"])
    (rollout,) = asyncio.run(play(pool, script, request(0), max_response_tokens=60))
    assert rollout.finish_reason is FinishReason.LENGTH
    assert len(rollout.response_ids) == 60
    assert rollout.turns[-1].answer is None


def test_an_observation_that_leaves_no_room_is_not_shown(pool: EnvironmentPool) -> None:
    (rollout,) = asyncio.run(play(pool, Script(["say a"]), request(0), max_response_tokens=30))
    assert rollout.finish_reason is FinishReason.LENGTH
    assert rollout.loss_mask.all()
    assert len(rollout.response_ids) == len("say a") + 1
    assert rollout.turns[-1].answer is not None  # what it earned is kept


def test_the_first_observation_belongs_to_the_prompt(pool: EnvironmentPool) -> None:
    (rollout,) = asyncio.run(play(pool, Script(["done"]), request(0, answer="look")))
    assert "prompt 0\n\nlook<|im_end|>" in rollout.prompt.text
    assert TOKENIZER.decode(rollout.prompt.token_ids.tolist()) == rollout.prompt.text
    assert rollout.loss_mask.all()


def test_what_fails_or_hangs_ends_its_own_episode(pool: EnvironmentPool) -> None:
    script = Script(["never asked"], ["say a", "hang"], ["say a", "done"])
    requests = (request(0, answer="fails"), request(1), request(2))
    failed, late, fine = asyncio.run(play(pool, script, *requests))
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.error == "environment: LookupError: no such row"
    assert (len(failed.response_ids), failed.turns) == (0, ())
    assert late.finish_reason is FinishReason.TIMEOUT
    assert late.error == "environment: no answer after 4 s"
    assert [turn.answer is not None for turn in late.turns] == [True, False]
    assert (fine.finish_reason, fine.error) == (FinishReason.STOP, None)


def test_no_rollout_waits_for_another(pool: EnvironmentPool, tmp_path: Path) -> None:
    signal = tmp_path / "the other is done"
    script = Script([f"wait {signal}", "done"], ["say a", "say b", "done"])
    arrived: list[int] = []
    asyncio.run(
        play(pool, script, request(0), request(1), arrived=arrived, on_arrival=signal.touch)
    )
    # The first one is let go by the end of the second: with a barrier it would have timed out.
    assert arrived == [1, 0]


@pytest.fixture(scope="module")
def tools() -> Iterator[EnvironmentPool]:
    pool = environment_pool("python_tool", {})
    asyncio.run(pool.ready())
    yield pool
    pool.close()


def test_a_tool_call_is_carried_out_and_its_output_is_read_and_masked(
    tools: EnvironmentPool,
) -> None:
    """As the experiment python_tool_math tells the model to call it; the program really runs."""
    program = (
        '<tool_call>{"name": "python", "arguments": {"code": "print(17 * 23)\\nprint(2 ** 8)"}}'
        "</tool_call>"
    )
    broken = '<tool_call>{"name": "python", "arguments": {"code": "print(1"}}</tool_call>'
    answer = r"It is \boxed{391}."
    script = Script([f"Let me see. {program}", answer], [broken, answer])
    right, wrong = asyncio.run(
        play(tools, script, request(0), request(1), max_response_tokens=2000)
    )
    shown = "\n<|im_start|>tool\n391\n256<|im_end|>\n<|im_start|>assistant\n"
    text = TOKENIZER.decode(right.response_ids.tolist())
    assert text == f"Let me see. {program}<|im_end|>{shown}{answer}<|im_end|>"
    assert TOKENIZER.decode(right.response_ids[~right.loss_mask].tolist()) == shown
    assert (right.finish_reason, right.error, right.text) == (FinishReason.STOP, None, answer)
    call, last = right.turns
    assert call.answer is not None
    assert (call.answer.tool_calls, call.answer.tool_errors) == (1, 0)
    assert last.answer == Turn(done=True)
    # The second action was written with the output in view.
    assert script.contexts[-1].endswith(CLOSING)
    assert any(f"{program}<|im_end|>{shown}" in context for context in script.contexts)
    masked = TOKENIZER.decode(wrong.response_ids[~wrong.loss_mask].tolist())
    assert "'(' was never closed<|im_end|>" in masked  # of a long output the middle is left out
    assert wrong.turns[0].answer is not None
    assert wrong.turns[0].answer.tool_errors == 1
