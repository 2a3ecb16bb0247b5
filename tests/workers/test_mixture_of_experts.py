"""A mixture of experts through the real stack: what engines sample is what the trainer has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlstack.algorithms.objectives import SFTObjective
from tests.tiny_model import write_tiny_mixture
from tests.workers.conftest import Stack, run_spec, running_stack
from tests.workers.test_stack import demonstrations, sample_batch

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=[1, 3], ids=lambda stage: f"zero{stage}")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    path = tmp_path_factory.mktemp("mixture")
    write_tiny_mixture(path)
    yield from running_stack(run_spec(path, zero_stage=request.param))


def test_engine_logprobs_equal_the_trainers_while_every_expert_learns(
    stack: Stack, tmp_path: Path
) -> None:
    async def differences() -> list[float]:
        assert stack.roles.policy is not None
        found = []
        for version in range(4):
            batch = await sample_batch(stack, version=version)
            trained = await stack.roles.policy.logprobs(batch)
            found.append(float((trained - batch.rollout_logprobs).abs().max()))
            if version < 3:
                await stack.roles.policy.update(demonstrations(batch), SFTObjective())
                changed = await stack.roles.policy.logprobs(batch)
                assert float((trained - changed).abs().max()) > 1e-2, "the update did nothing"
        await stack.roles.policy.export(tmp_path)
        return found

    assert max(stack.run(differences())) < 1e-4
    before = load_file(Path(stack.spec.model.path) / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert sorted(after) == sorted(before)
    experts = [name for name in before if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        assert float((after[name] - before[name]).abs().max()) > 1e-3, name
