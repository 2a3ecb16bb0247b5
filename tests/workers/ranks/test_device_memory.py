"""A trainer that leaves its device holds nothing there, and goes on as if it had stayed.

The device is the CPU, whose memory comes and goes as a GPU's does; DeepSpeed is the real one.
"""

from dataclasses import dataclass
from pathlib import Path

import deepspeed
import pytest
import torch
from torch import Tensor, nn

from rlstack.algorithms.objectives import SFTObjective
from rlstack.batches.supervised import SFTBatch
from rlstack.config.trainer import LoRAConfig
from tests.workers.conftest import model_config, random_batch, trainer_config
from tests.workers.ranks.conftest import SMALL, held_bytes, memories
from workers.ranks import device_memory
from workers.ranks.device_memory import DeviceMemory
from workers.ranks.policy import PolicyRank
from workers.specs import TrainerSpec

LORA = LoRAConfig(variant="lora", rank=4, alpha=8, dropout=0, target_modules=None, engines="merged")


def views_of_one_memory() -> tuple[Tensor, Tensor, Tensor]:
    whole = torch.arange(1000.0)
    return whole, whole[10:20], torch.arange(3)


def test_what_views_share_they_share_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "HOST_BLOCK_BYTES", 64)  # contents lie across blocks
    whole, part, other = views_of_one_memory()
    memory = DeviceMemory(lambda: [part, whole, other], device=torch.device("cpu"))
    for _ in range(2):
        memory.leave()
        assert memory.is_left
        assert whole.untyped_storage().nbytes() == other.untyped_storage().nbytes() == 0
        memory.come_back()
        assert not memory.is_left
        assert whole.equal(torch.arange(1000.0))
        assert other.equal(torch.arange(3))
        part.zero_()
        assert not whole[10:20].any()
        part.copy_(torch.arange(10.0, 20.0))


def test_leaving_twice_loses_nothing() -> None:
    """As where a transfer is tried again after an engine's death."""
    weights = torch.arange(4)
    memory = DeviceMemory(lambda: [weights], device=torch.device("cpu"))
    memory.leave()
    memory.leave()
    memory.come_back()
    memory.come_back()
    assert weights.equal(torch.arange(4))


def test_what_did_not_change_is_not_copied_out_again() -> None:
    weights = torch.ones(4)
    memory = DeviceMemory(lambda: [weights], device=torch.device("cpu"))
    memory.leave(unchanged=True)
    memory.come_back()
    assert weights.equal(torch.ones(4))
    weights.zero_()
    memory.leave(unchanged=True)
    memory.come_back()
    assert weights.equal(torch.ones(4))


def test_what_is_elsewhere_stays_there() -> None:
    weights = torch.ones(4)
    memory = DeviceMemory(lambda: [weights], device=torch.device("meta"))
    memory.leave()
    assert weights.equal(torch.ones(4))
    memory.come_back()


# --- the states of DeepSpeed's optimizers


@dataclass(frozen=True, kw_only=True)
class Layout:
    zero_stage: int
    dtype: str
    lora: bool = False

    def __str__(self) -> str:
        return f"zero{self.zero_stage}-{self.dtype}{'-lora' * self.lora}"


DTYPES = ("float32", "bfloat16")
LAYOUTS = [
    *(Layout(zero_stage=stage, dtype=dtype) for stage in range(4) for dtype in DTYPES),
    *(Layout(zero_stage=stage, dtype="bfloat16", lora=True) for stage in (1, 3)),
]


class MovedPolicy(PolicyRank):
    """Its weights are moved to the device from the file, as they are to a GPU."""

    def build(self) -> nn.Module:
        module = super().build()
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
        return module


def trainer(path: Path, layout: Layout) -> PolicyRank:
    rank = MovedPolicy(
        TrainerSpec(
            model=model_config(path).model_copy(update={"dtype": layout.dtype}),
            trainer=trainer_config(
                zero_stage=layout.zero_stage, lora=LORA if layout.lora else None
            ),
            temperature=1.0,
            total_updates=4,
            seed=0,
            device="cpu",
            data_parallel=1,
            threads=1,
        ),
        rank=0,
    )
    rank.start()
    return rank


def batch() -> SFTBatch:
    rows = random_batch([20, 30, 25, 10])
    return SFTBatch(
        token_ids=rows.token_ids,
        attention_mask=rows.attention_mask,
        loss_mask=rows.loss_mask,
        num_loss_tokens=int(rows.loss_mask.sum()),
    )


def weights(rank: PolicyRank) -> dict[str, Tensor]:
    parameters = dict(rank.model.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: p.detach().clone() for name, p in parameters.items()}


@pytest.mark.real_stack
@pytest.mark.usefixtures("deepspeed_here")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_trainer_leaves_nothing_behind_and_goes_on_to_the_bit(
    tied_model: Path, tmp_path: Path, layout: Layout
) -> None:
    stayed = trainer(tied_model, layout)
    for _ in range(3):
        stayed.update(batch(), SFTObjective())
    expected = weights(stayed)
    del stayed
    before = memories()
    moves = trainer(tied_model, layout)
    for _ in range(3):
        moves.update(batch(), SFTObjective())
        held = held_bytes(beside=before, host=moves.memory)
        moves.offload()
        assert held > 50 * SMALL
        assert held_bytes(beside=before, host=moves.memory) < SMALL
        for use in (
            lambda: moves.update(batch(), SFTObjective()),
            lambda: moves.save(tmp_path),
            lambda: moves.load(tmp_path),
            lambda: moves.export(tmp_path),
        ):
            with pytest.raises(RuntimeError, match="policy's state is in host memory"):
                use()
        moves.reload()
    found = weights(moves)
    for name, weight in expected.items():
        assert found[name].equal(weight), name


@pytest.mark.real_stack
@pytest.mark.usefixtures("deepspeed_here")
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_many_bf16_gradients_add_up_to_their_sum(tied_model: Path, zero_stage: int) -> None:
    """64 micro-batches of the same row; in bf16 their sum is wrong by more than 0.1 %."""
    norms = []
    for copies in (1, 64):
        rank = trainer(tied_model, Layout(zero_stage=zero_stage, dtype="bfloat16"))
        one = random_batch([200])
        rows = SFTBatch(
            token_ids=one.token_ids.repeat(copies, 1),
            attention_mask=one.attention_mask.repeat(copies, 1),
            loss_mask=one.loss_mask.repeat(copies, 1),
            num_loss_tokens=int(one.loss_mask.sum()),
        )
        norms.append(rank.update(rows, SFTObjective()).metrics.values()["policy/grad_norm"])
    assert norms[1] / norms[0] == pytest.approx(64, rel=1e-5)
