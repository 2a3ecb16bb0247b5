"""Adapters: their names, their maths, and the real stack trained by them."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlstack.algorithms.objectives import SFTObjective
from rlstack.batch import CriticBatch, TokenBatch
from rlstack.config.critic import CriticConfig
from rlstack.config.trainer import LoRAConfig
from rlstack.errors import ConfigError
from tests.workers.conftest import (
    Stack,
    frozen_role,
    model_config,
    random_batch,
    run_spec,
    running_stack,
    trainer_config,
)
from tests.workers.test_stack import demonstrations, sample_batch
from workers.models import lora
from workers.models.adapter_targets import check_adapters
from workers.specs import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from workers.transfer.source import DeepSpeedSource

VARIANTS = ("lora", "rslora", "dora")


def lora_config(**changes: Any) -> LoRAConfig:
    values = {
        "variant": "lora",
        "rank": 4,
        "alpha": 8,
        "dropout": 0.0,
        "target_modules": None,
        "engines": "adapters",
    }
    return LoRAConfig.model_validate(values | changes)


def adapted(path: Path, variant: str, *, seed: int = 0) -> Any:
    """A model with adapters that do something."""
    model = AutoModelForCausalLM.from_pretrained(path)
    lora.adapt(model, lora_config(variant=variant), whole=())
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.05)
    return model.eval()


def logits(model: Any) -> Tensor:
    tokens = torch.arange(3, 90).view(3, 29)
    with torch.no_grad():
        return model(tokens).logits


def write(folder: Path, model: Any) -> Path:
    folder.mkdir()
    for name, contents in lora.adapter_files(model, lora.trained_tensors(model)).items():
        (folder / name).write_bytes(contents)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_weights_say_what_adapters_say(untied_model: Path, variant: str) -> None:
    model = adapted(untied_model, variant)
    plain = AutoModelForCausalLM.from_pretrained(untied_model)
    assert float((logits(plain) - logits(model)).abs().max()) > 0.1, "the adapters do nothing"
    merged = dict(DeepSpeedSource(model, tied_output=None))
    assert list(merged) == list(dict(DeepSpeedSource(plain, tied_output=None)))
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_loads_the_adapters_files(untied_model: Path, tmp_path: Path, variant: str) -> None:
    model = adapted(untied_model, variant)
    base = AutoModelForCausalLM.from_pretrained(untied_model)
    loaded = PeftModel.from_pretrained(base, str(write(tmp_path / "adapter", model)))
    torch.testing.assert_close(logits(loaded.eval()), logits(model), atol=1e-6, rtol=1e-6)
    unloaded = loaded.merge_and_unload()  # peft's own merging, against ours
    for name, tensor in DeepSpeedSource(model, tied_output=None):
        torch.testing.assert_close(unloaded.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_names_are_those_that_peft_gives(untied_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(untied_model)
    config = LoraConfig(r=4, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model_state_dict(get_peft_model(base, config))
    assert sorted(lora.trained_tensors(adapted(untied_model, "dora"))) == sorted(theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_changes_nothing_and_starts_anew(untied_model: Path, variant: str) -> None:
    model = adapted(untied_model, variant)
    before = logits(model)
    lora.merge(model, seed=1)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    with lora.adapters_disabled(model):  # all of it is in the weights now
        torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


def test_without_adapters_the_model_is_the_one_below(untied_model: Path) -> None:
    model = adapted(untied_model, "dora")
    base = AutoModelForCausalLM.from_pretrained(untied_model)
    before = logits(model)
    with lora.adapters_disabled(model):
        assert torch.equal(logits(model), logits(base.eval()))
    assert torch.equal(logits(model), before)


def test_a_head_is_trained_in_full_and_saved_for_peft(untied_model: Path, tmp_path: Path) -> None:
    def classifier() -> Any:
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(
            untied_model, num_labels=1, pad_token_id=0
        ).eval()

    model = classifier()
    lora.adapt(model, lora_config(target_modules=("q_proj",)), whole=("score",))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 1 + 2 * model.config.num_hidden_layers
    assert "score.weight" in trained
    nn.init.ones_(model.score.weight)
    loaded = PeftModel.from_pretrained(classifier(), str(write(tmp_path / "adapter", model)))
    torch.testing.assert_close(logits(loaded.eval()), logits(model))


@pytest.mark.parametrize("target", ["qproj", "lm_head", "embed_tokens"])
def test_a_target_that_cannot_be_is_named_with_those_that_can(
    untied_model: Path, target: str
) -> None:
    config = lora_config(target_modules=("v_proj", target))
    known = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(ConfigError, match=f"trainer.lora.target_modules: {target}; .*{known}"):
        check_adapters(model_config(untied_model), config, key="trainer.lora")


LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def differing(one: nn.Module, other: nn.Module) -> set[str]:
    """The last parts of the names of the modules whose weights differ."""
    return {
        name.rpartition(".")[0].rpartition(".")[2]
        for name, tensor in one.state_dict().items()
        if not torch.equal(tensor, other.state_dict()[name])
    }


LAYOUTS = {
    "lora": ({"variant": "lora"}, {"zero_stage": 1}),
    "dora": (
        {"variant": "dora", "engines": "merged", "dropout": 0.2},
        {"zero_stage": 3, "gradient_checkpointing": True},
    ),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def stack(request: pytest.FixtureRequest, tied_model: Path) -> Iterator[Stack]:
    adapters, changes = LAYOUTS[request.param]
    spec = run_spec(tied_model, zero_stage=1)
    assert spec.policy is not None
    trainer = trainer_config(**changes, lora=lora_config(**adapters).model_dump())
    role = replace(spec.policy, trainer=trainer)
    reference = frozen_role(tied_model, zero_stage=0)
    spec = replace(spec, policy=role, critic=role, reference=reference)
    yield from running_stack(spec)


async def difference(stack: Stack, batch: TokenBatch) -> float:
    """Between what engine and trainer say of the engine's tokens."""
    assert stack.roles.policy is not None
    trained = await stack.roles.policy.logprobs(batch)
    return float((trained - batch.rollout_logprobs).abs().max())


@pytest.mark.real_stack
@pytest.mark.timeout(600)
def test_updates_reach_the_engine_and_leave_the_reference(stack: Stack) -> None:
    async def scenario() -> None:
        policy, reference = stack.roles.policy, stack.roles.reference
        assert policy is not None
        assert reference is not None
        first = await sample_batch(stack, version=1)
        untouched = await policy.logprobs(first)
        for version in (2, 3):
            batch = await sample_batch(stack, version=version)
            assert await difference(stack, batch) < 1e-4
            await policy.update(demonstrations(batch), SFTObjective())
        assert float((await policy.logprobs(first) - untouched).abs().max()) > 1e-2
        # New adapters do nothing: at first the policy was its own reference.
        torch.testing.assert_close(await reference.logprobs(first), untouched, atol=1e-5, rtol=0)

    stack.run(scenario())


@pytest.mark.real_stack
@pytest.mark.timeout(600)
def test_exported_models_and_adapters_say_what_the_trainer_says(
    stack: Stack, tmp_path: Path
) -> None:
    async def export() -> None:
        assert stack.roles.policy is not None
        await stack.roles.policy.export(tmp_path / "export")

    base_path = Path(stack.spec.model.path)
    stack.run(export())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    base = AutoModelForCausalLM.from_pretrained(base_path).eval()
    assert differing(base, merged) == LINEAR
    adapter = tmp_path / "export" / "adapter"
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(base_path)
    assert load((adapter / ADAPTER_WEIGHTS).read_bytes())
    loaded = PeftModel.from_pretrained(base, str(adapter)).eval()
    torch.testing.assert_close(logits(loaded), logits(merged), atol=1e-4, rtol=1e-4)


@pytest.mark.real_stack
@pytest.mark.timeout(600)
def test_resuming_is_exact_and_merging_starts_a_new_round(stack: Stack, tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = stack.roles.policy
        assert policy is not None
        batch = await sample_batch(stack, version=10)
        await policy.save(tmp_path / "before")
        ended = []
        for _ in range(2):
            await policy.update(demonstrations(batch), SFTObjective())
            ended.append(await policy.logprobs(batch))
            await policy.load(tmp_path / "before")
        assert torch.equal(ended[0], ended[1])
        before = await policy.logprobs(batch)
        await policy.merge_adapters()
        torch.testing.assert_close(await policy.logprobs(batch), before, atol=1e-5, rtol=0)
        await policy.save(tmp_path / "merged")
        await policy.update(demonstrations(batch), SFTObjective())
        after = await policy.logprobs(batch)
        assert float((after - before).abs().max()) > 1e-2
        reference = stack.roles.reference
        assert reference is not None
        torch.testing.assert_close(await reference.logprobs(batch), before, atol=1e-5, rtol=0)
        # Another merge: what is below the adapters must come back from the checkpoint.
        await policy.merge_adapters()
        await policy.load(tmp_path / "merged")
        await policy.update(demonstrations(batch), SFTObjective())
        assert torch.equal(await policy.logprobs(batch), after)

    stack.run(scenario())


@pytest.mark.real_stack
@pytest.mark.timeout(600)
def test_engines_follow_a_merge(stack: Stack) -> None:
    async def scenario() -> None:
        policy, reallocator = stack.roles.policy, stack.roles.reallocator
        assert policy is not None
        assert reallocator is not None
        await policy.merge_adapters()
        reallocator.weights_changed()
        batch = await sample_batch(stack, version=20)
        assert await difference(stack, batch) < 1e-4
        await policy.update(demonstrations(batch), SFTObjective())
        updated = await sample_batch(stack, version=21)
        assert await difference(stack, updated) < 1e-4
        assert await difference(stack, batch) > 1e-2, "the new adapters do nothing"
        await reallocator.connect()  # as to an engine that was started anew
        assert await difference(stack, await sample_batch(stack, version=22)) < 1e-4

    stack.run(scenario())


def lesson_of(batch: TokenBatch) -> CriticBatch:
    """Returns that a value function can learn: 1 where a row is long, -1 where it is short."""
    sign = torch.where(batch.lengths > batch.lengths.float().median(), 1.0, -1.0)
    return CriticBatch(
        **{field.name: getattr(batch, field.name) for field in fields(TokenBatch)},
        old_values=torch.zeros(batch.loss_mask.shape),
        returns=torch.where(batch.loss_mask, sign.unsqueeze(1), 0.0),
        num_loss_tokens=int(batch.loss_mask.sum()),
    )


def values_of(model: Any, batch: TokenBatch) -> Tensor:
    """Float32 [B, T] by transformers: the score of the state before each loss token."""
    with torch.no_grad():
        hidden = model.model(batch.token_ids, batch.attention_mask.long()).last_hidden_state
        scores = model.score(hidden).squeeze(2)
    return torch.where(batch.loss_mask, scores.roll(1, dims=1), 0.0)


def trained_names(actor: Any) -> list[str]:
    return [name for name, p in actor.rank.model.named_parameters() if p.requires_grad]


@pytest.mark.real_stack
@pytest.mark.timeout(600)
def test_a_critic_learns_by_adapters_and_a_new_head(stack: Stack, tmp_path: Path) -> None:
    critic, role = stack.roles.critic, stack.spec.critic
    assert critic is not None
    assert role is not None
    config = CriticConfig(path=None, warmup_steps=0, value_clip=None, trainer=role.trainer)
    batch = random_batch([50, 45, 40, 30, 20, 15, 10, 5])
    lesson = lesson_of(batch)

    async def scenario() -> tuple[list[float], Tensor]:
        assert not (await critic.values(batch)).any(), "a new head says 0"
        losses = [(await critic.update(lesson, config)).values() for _ in range(4)]
        await critic.save(tmp_path / "saved")
        ended = []
        for _ in range(2):
            losses.append((await critic.update(lesson, config)).values())
            ended.append(await critic.values(batch))
            await critic.load(tmp_path / "saved")
        assert torch.equal(ended[0], ended[1])
        await critic.export(tmp_path / "export")
        return [found["critic/loss"] for found in losses], await critic.values(batch)

    losses, values = stack.run(scenario())
    assert losses[-1] < losses[0]
    assert losses[-1] == losses[-2]
    for names in ray.get([rank.__ray_call__.remote(trained_names) for rank in critic.ranks]):
        assert {"lora_" in name for name in names if name != "score.weight"} == {True}
        assert "score.weight" in names
    base, merged, adapted_too = (
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=1).eval()
        for path in (stack.spec.model.path, tmp_path / "export", stack.spec.model.path)
    )
    assert differing(base, merged) == {*LINEAR, "score"}
    torch.testing.assert_close(values_of(merged, batch), values, atol=1e-4, rtol=1e-4)
    # Nothing but the adapters and the head: on the model of the files they say the same.
    loaded = PeftModel.from_pretrained(adapted_too, str(tmp_path / "export" / "adapter")).eval()
    again = values_of(loaded.get_base_model(), batch)
    torch.testing.assert_close(again, values, atol=1e-4, rtol=1e-4)
