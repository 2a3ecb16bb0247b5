"""A reference on ranks of its own moves to the policy's weights, whatever ZeRO stage each has."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlstack.errors import CheckpointError
from tests.workers.conftest import (
    Stack,
    frozen_role,
    random_batch,
    run_spec,
    running_stack,
)
from workers.groups.moving_reference import MovingReferenceGroup
from workers.groups.ranks import PolicyGroup, ReferenceGroup

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(300)]

LAYOUTS = {"whole": (1, 0), "sharded": (3, 3)}
"""ZeRO stage of the policy and of the reference."""


@pytest.fixture(scope="module", params=LAYOUTS)
def stack(request: pytest.FixtureRequest, tied_model: Path, other_model: Path) -> Iterator[Stack]:
    policy_stage, reference_stage = LAYOUTS[request.param]
    spec = run_spec(tied_model, zero_stage=policy_stage)
    reference = frozen_role(other_model, zero_stage=reference_stage)
    yield from running_stack(replace(spec, rollout=None, reference=reference))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, tied_model: Path) -> Path:
    """The same model with other weights, as the policy is some steps later."""
    path = tmp_path_factory.mktemp("other")
    for file in tied_model.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    generator = torch.Generator().manual_seed(1)
    weights = load_file(tied_model / "model.safetensors")
    other = {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    save_file(other, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_it_becomes_what_is_asked_for_is_saved_and_comes_back(
    stack: Stack, tied_model: Path, other_model: Path, tmp_path: Path
) -> None:
    policy, reference = stack.roles.policy, stack.roles.reference
    assert isinstance(policy, PolicyGroup)
    assert isinstance(reference, ReferenceGroup)
    moving = MovingReferenceGroup(reference, policy)

    def weights(name: str) -> dict[str, Tensor]:
        stack.run(moving.save(tmp_path / name))
        return load_file(tmp_path / name / "model.safetensors")

    new, old = (load_file(path / "model.safetensors") for path in (tied_model, other_model))
    stack.run(moving.move(mix=0.25))
    mixed = weights("mixed")
    assert mixed.keys() == new.keys() == old.keys()
    for name, found in mixed.items():
        torch.testing.assert_close(found, 0.25 * new[name] + 0.75 * old[name], atol=1e-6, rtol=0)

    batch = random_batch([90, 60, 40, 30, 8, 4])
    before = stack.run(reference.logprobs(batch))
    of_policy = stack.run(policy.logprobs(batch))
    assert (before - of_policy).abs().max() > 0.01
    stack.run(moving.move(mix=1.0))
    assert all(torch.equal(found, new[name]) for name, found in weights("reset").items())
    torch.testing.assert_close(stack.run(reference.logprobs(batch)), of_policy, atol=1e-5, rtol=0)

    stack.run(moving.load(tmp_path / "mixed"))
    assert torch.equal(stack.run(reference.logprobs(batch)), before)
    assert all(torch.equal(found, mixed[name]) for name, found in weights("again").items())


def test_a_checkpoint_without_its_weights_is_named(stack: Stack, tmp_path: Path) -> None:
    assert isinstance(stack.roles.policy, PolicyGroup)
    assert isinstance(stack.roles.reference, ReferenceGroup)
    moving = MovingReferenceGroup(stack.roles.reference, stack.roles.policy)
    with pytest.raises(CheckpointError, match="weights of the reference are missing"):
        stack.run(moving.load(tmp_path))
