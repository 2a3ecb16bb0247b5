"""What the policy in training answers right now, judged."""

from collections.abc import Sequence

from rlstack.commands.wiring import Running
from rlstack.config.rounds import SampledConfig
from rlstack.evaluation import evaluation_metrics
from rlstack.metrics import Metrics
from rlstack.seeds import Domain
from rlstack.types import Group, Phase, Prompt


class PolicySamples:
    """Samples the policy between two phases of training."""

    def __init__(self, config: SampledConfig, running: Running) -> None:
        assert running.sampler is not None
        assert running.roles.reallocator is not None
        self.config = config
        self.sampler = running.sampler
        self.reallocator = running.roles.reallocator
        self.tracker = running.tracker

    async def take(
        self, prompts: Sequence[Prompt], *, first: int, step: int
    ) -> tuple[list[Group], Metrics]:
        """Sample and judge `rollout.num_samples` responses to each prompt, to learn from.

        first: number of the first prompt in the run. step: steps completed.
        """
        return await self._groups(
            prompts,
            num_samples=self.config.rollout.num_samples,
            domain=Domain.ROLLOUT,
            first=first,
            step=step,
        )

    async def evaluate(self, prompts: Sequence[Prompt], *, step: int) -> dict[str, float]:
        """Sample and judge one response to each held-out prompt; metrics `eval/...`."""
        self.tracker.span("evaluation")
        groups, _ = await self._groups(
            prompts, num_samples=1, domain=Domain.EVALUATION, first=0, step=step
        )
        return evaluation_metrics(groups).values()

    async def _groups(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        domain: Domain,
        first: int,
        step: int,
    ) -> tuple[list[Group], Metrics]:
        evaluation = domain is Domain.EVALUATION
        metrics = await self.reallocator.enter(Phase.GENERATE, version=step)
        groups = await self.sampler.sample(
            prompts,
            domain=domain,
            numbers=range(first, first + len(prompts)),
            num_samples=num_samples,
            sampling=self.config.rollout.sampling(),
            version=step,
        )
        metrics += await self.reallocator.enter(Phase.TRAIN, version=step)
        # What is learned from belongs to the step that will learn from it first.
        shown = step if evaluation else step + 1
        self.tracker.rollouts(groups, step=shown, evaluation=evaluation)
        return groups, metrics
