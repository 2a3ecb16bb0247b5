"""Checks that span groups and that several commands share."""

from rlstack.config.base import Problem
from rlstack.config.data import DataConfig
from rlstack.config.placement import PlacementConfig
from rlstack.config.trainer import TrainerConfig

MAX_SERVED_RANK = 512
"""The largest rank of an adapter that vLLM serves."""


def nothing_to_train_on(data: DataConfig) -> list[Problem]:
    """Training needs rows."""
    return [] if data.train else [Problem(("data.train",), "is empty; name at least one source")]


def trainer_problems(
    trainer: TrainerConfig,
    placement: PlacementConfig,
    *,
    longest_row: int,
    row_keys: tuple[str, str],
    key: str = "trainer",
) -> list[Problem]:
    """What the trainer under `key` cannot do; `row_keys` make the longest row, of `longest_row`."""
    found: list[Problem] = []
    if trainer.max_tokens_per_microbatch < longest_row:
        text = (
            f"{trainer.max_tokens_per_microbatch} is less than the longest possible row, "
            f"{longest_row} tokens ({' + '.join(row_keys)}); raise it to at least that"
        )
        found.append(Problem((f"{key}.max_tokens_per_microbatch", *row_keys), text))
    parameters, optimizer, stage = (
        f"{key}.offload_parameters",
        f"{key}.offload_optimizer",
        f"{key}.zero_stage",
    )
    if trainer.offload_parameters and trainer.zero_stage != 3:
        text = f"needs {stage}=3, got {trainer.zero_stage}"
        found.append(Problem((parameters, stage), text))
    if trainer.offload_optimizer and trainer.zero_stage == 0:
        found.append(Problem((optimizer, stage), f"needs {stage} of 1, 2 or 3, got 0"))
    if placement.device == "cpu" and (trainer.offload_optimizer or trainer.offload_parameters):
        offload = optimizer if trainer.offload_optimizer else parameters
        text = "moves state off a GPU; with placement.device=cpu set it to false"
        found.append(Problem((offload, "placement.device"), text))
    return found


def placement_problems(placement: PlacementConfig) -> list[Problem]:
    """A role on the policy's devices has no more ranks than those."""
    found = [placement.misfit(name) for name in placement.beside_policy]
    return [problem for problem in found if problem is not None]


def served_adapter_problems(trainer: TrainerConfig) -> list[Problem]:
    """What vLLM cannot serve as an adapter."""
    lora = trainer.lora
    if lora is None or lora.engines == "merged":
        return []
    fix = "vLLM serves no such adapters; set trainer.lora.engines=merged"
    if lora.variant == "dora":
        return [Problem(("trainer.lora.variant", "trainer.lora.engines"), f"dora: {fix}")]
    if lora.rank > MAX_SERVED_RANK:
        text = f"{lora.rank} is more than {MAX_SERVED_RANK}: {fix}"
        return [Problem(("trainer.lora.rank", "trainer.lora.engines"), text)]
    return []
