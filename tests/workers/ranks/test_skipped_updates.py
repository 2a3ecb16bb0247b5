"""An update whose loss or gradient is not finite on one of two ranks changes nothing on either."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlstack.algorithms.objectives import SFTObjective
from rlstack.batch import PolicyBatch
from rlstack.batches.supervised import SFTBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.config.trainer import ScheduleConfig
from rlstack.data.microbatches import plan_microbatches
from tests.config.test_load import rl_values
from tests.workers.conftest import (
    Stack,
    model_config,
    random_batch,
    run_spec,
    running_stack,
    trainer_config,
)
from workers.groups.ranks import PolicyGroup

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(300)]

LENGTHS = [40, 38, 35, 33, 30, 28, 26, 24]
LEARNING_RATE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How weights and gradients lie."""

    zero_stage: int
    dtype: str

    def __str__(self) -> str:
        return f"zero{self.zero_stage}-{self.dtype}"


LAYOUTS = [
    Layout(zero_stage=0, dtype="float32"),
    Layout(zero_stage=0, dtype="bfloat16"),
    Layout(zero_stage=1, dtype="float32"),
    Layout(zero_stage=2, dtype="bfloat16"),
    Layout(zero_stage=3, dtype="float32"),
    Layout(zero_stage=3, dtype="bfloat16"),
]


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def trainer(request: pytest.FixtureRequest, tied_model: Path) -> Iterator[Stack]:
    layout: Layout = request.param
    spec = run_spec(tied_model, zero_stage=layout.zero_stage)
    model = replace_model(tied_model, layout.dtype)
    assert spec.policy is not None
    schedule = ScheduleConfig(name="linear", warmup_updates=0, min_ratio=0.0)
    role = replace(
        spec.policy,
        model=model,
        trainer=trainer_config(
            zero_stage=layout.zero_stage,
            learning_rate=LEARNING_RATE,
            schedule=schedule,
            max_tokens_per_microbatch=80,
        ),
        total_updates=10,
    )
    yield from running_stack(replace(spec, model=model, policy=role, rollout=None))


def replace_model(path: Path, dtype: str) -> Any:
    return model_config(path).model_copy(update={"dtype": dtype})


def policy_of(stack: Stack) -> PolicyGroup:
    assert stack.roles.policy is not None
    return stack.roles.policy


def algorithm() -> AlgorithmConfig:
    return parse(RLConfig, rl_values("algorithm=grpo")).algorithm


def policy_batch(*, seed: int) -> PolicyBatch:
    batch = random_batch(LENGTHS)
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(batch.token_ids.shape)
    logprobs = torch.where(batch.loss_mask, -4.0, 0.0)
    advantages = torch.randn(shape, generator=generator)
    return PolicyBatch(
        token_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        loss_mask=batch.loss_mask,
        rollout_logprobs=logprobs,
        group_ids=batch.group_ids,
        rewards=batch.rewards,
        old_logprobs=logprobs,
        ref_logprobs=logprobs,
        advantages=torch.where(batch.loss_mask, advantages, 0.0),
        correction_weights=torch.ones(shape),
        num_loss_tokens=int(batch.loss_mask.sum()),
        num_rollouts=batch.num_rows,
        kl_coef=0.0,
    )


def row_of_rank(rank: int, *, last: bool) -> int:
    """A row of the rank's last micro-batch, or of its first."""
    plan = plan_microbatches(LENGTHS, data_parallel=2, max_tokens=80)[rank]
    assert len(plan) > 1
    return plan[-1 if last else 0][0]


def poisoned(field: str, value: float, *, row: int) -> PolicyBatch:
    """One token of one row, and so of one rank, is not a number to compute with."""
    batch = policy_batch(seed=1)
    changed: Tensor = getattr(batch, field).clone()
    changed[row, int(batch.loss_mask[row].nonzero()[0])] = value
    return replace(batch, **{field: changed})


POISONS: dict[str, Callable[[], PolicyBatch]] = {
    "a NaN advantage of rank 0, in its last micro-batch": lambda: poisoned(
        "advantages", torch.nan, row=row_of_rank(0, last=True)
    ),
    "a NaN logprob of rank 1, in its first micro-batch": lambda: poisoned(
        "old_logprobs", torch.nan, row=row_of_rank(1, last=False)
    ),
    "an infinite advantage of rank 1": lambda: poisoned(
        "advantages", torch.inf, row=row_of_rank(1, last=True)
    ),
    # The ratio is clipped, so that the gradient of this loss is 0 or finite.
    "an infinite weight of a clipped token of rank 0": lambda: clipped_and_infinite(
        row_of_rank(0, last=False)
    ),
}


def clipped_and_infinite(row: int) -> PolicyBatch:
    """The loss of the row's first token is infinite, and no gradient of it goes to the logprob."""
    batch = poisoned("old_logprobs", -30.0, row=row)
    token = int(batch.loss_mask[row].nonzero()[0])
    advantages = batch.advantages.clone()
    advantages[row, token] = torch.inf
    return replace(batch, advantages=advantages)


def states(stack: Stack) -> list[dict[str, Tensor]]:
    """Of every rank: its parameters or shards of them, and what its optimizer remembers."""

    def held(rank: Any) -> dict[str, Tensor]:
        found = {
            name: getattr(parameter, "ds_tensor", parameter).detach().cpu().clone()
            for name, parameter in rank.model.named_parameters()
        }
        optimizer = rank.engine.optimizer
        inner = getattr(optimizer, "optimizer", optimizer)
        for index, group in enumerate(inner.param_groups):
            for number, master in enumerate(group["params"]):
                found[f"master {index} {number}"] = master.detach().cpu().clone()
                for key, moment in inner.state[master].items():
                    found[f"{key} {index} {number}"] = torch.as_tensor(moment).cpu().clone()
        return found

    return stack.run(policy_of(stack).call(held))


def assert_same_bits(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for rank, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.isfinite().all(), (rank, name)
            assert torch.equal(tensor, theirs[name]), (rank, name)


def update(stack: Stack, batch: PolicyBatch) -> dict[str, float]:
    return stack.run(policy_of(stack).update(batch, algorithm())).values()


def test_nothing_changes_on_any_rank(trainer: Stack) -> None:
    """Neither before the first update that is taken nor after it."""
    for round_ in range(2):
        before = states(trainer)
        for name, make in POISONS.items():
            assert update(trainer, make()) == {"policy/skipped_updates": 1.0}, name
            assert_same_bits(states(trainer), before)
        taken = update(trainer, policy_batch(seed=round_))
        assert taken["policy/skipped_updates"] == 0.0
        assert taken["policy/grad_norm"] > 0
        # The schedule is over updates that were taken: 10 of them to 0.
        assert taken["policy/learning_rate"] == pytest.approx(LEARNING_RATE * (1 - round_ / 10))
        changed = [
            not torch.equal(tensor, before[0][name])
            for name, tensor in states(trainer)[0].items()
            if name.startswith("master")
        ]
        assert all(changed)


def test_the_next_update_is_as_if_nothing_had_happened(trainer: Stack, tmp_path: Path) -> None:
    """No gradient, moment or random number of a skipped update is left."""
    policy = policy_of(trainer)
    trainer.run(policy.save(tmp_path))
    update(trainer, policy_batch(seed=3))
    expected = states(trainer)
    trainer.run(policy.load(tmp_path))
    for make in POISONS.values():
        update(trainer, make())
    update(trainer, policy_batch(seed=3))
    assert_same_bits(states(trainer), expected)


def test_supervised_training_skips_them_too(trainer: Stack) -> None:
    """Here the model itself is beyond numbers, on all ranks."""
    batch = random_batch(LENGTHS)
    sft = SFTBatch(
        token_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        loss_mask=batch.loss_mask,
        num_loss_tokens=int(batch.loss_mask.sum()),
    )

    def overflow(rank: Any, sign: float) -> None:
        """Let rank 1 see temperatures at which logits overflow."""
        if rank.mesh.rank == 1:
            rank.spec = replace(rank.spec, temperature=sign * rank.spec.temperature)

    policy, before = policy_of(trainer), states(trainer)
    trainer.run(policy.call(overflow, 1e-42))
    found = trainer.run(policy.update(sft, SFTObjective())).values()
    trainer.run(policy.call(overflow, 1e42))
    assert found == {"policy/skipped_updates": 1.0}
    assert_same_bits(states(trainer), before)
    assert trainer.run(policy.update(sft, SFTObjective())).values()["policy/skipped_updates"] == 0.0
