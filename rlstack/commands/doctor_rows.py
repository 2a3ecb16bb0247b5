"""What `rlstack doctor` tries on a machine, as data; pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The smallest real step of one way to run."""

    name: str
    overrides: tuple[str, ...]
    """Of `rlstack rl`."""
    refusal: str | None = None
    """Why it cannot be tried here."""


def rows(*, num_gpus: int) -> list[Row]:
    """Every placement, ZeRO stage, dtype and kind of weights that differ in code.

    num_gpus: of this machine; 0: the rows of a CPU.
    """
    return _gpu_rows(num_gpus) if num_gpus else _cpu_rows()


def _cpu_rows() -> list[Row]:
    device = "placement.device=cpu"
    stages = [
        Row(
            name=f"ZeRO {stage}, 2 ranks, float32",
            overrides=(device, "placement.trainer_ranks=2", f"trainer.zero_stage={stage}"),
        )
        for stage in (1, 3)
    ]
    return [
        *stages,
        Row(
            name="ZeRO 2, 2 ranks, bfloat16",
            overrides=(
                device,
                "placement.trainer_ranks=2",
                "trainer.zero_stage=2",
                "model.dtype=bfloat16",
            ),
        ),
        Row(
            name="adapters sent to the engine",
            overrides=(device, "placement.trainer_ranks=1", "trainer=lora"),
        ),
        Row(
            name="engine on 2 tensor-parallel workers",
            overrides=(device, "placement.trainer_ranks=1", "placement.tensor_parallel=2"),
        ),
    ]


def _gpu_rows(num_gpus: int) -> list[Row]:
    bfloat16 = "model.dtype=bfloat16"
    one = ("placement.device=gpu", "placement.trainer_ranks=1", bfloat16)
    two = ("placement.device=gpu", "placement.trainer_ranks=2", bfloat16)
    needs_two = None if num_gpus >= 2 else f"needs 2 GPUs; there is {num_gpus}"
    needs_three = None if num_gpus >= 3 else f"needs 3 GPUs; there are {num_gpus}"
    found = [
        Row(name=f"colocated, ZeRO {stage}", overrides=(*one, f"trainer.zero_stage={stage}"))
        for stage in (0, 1, 2, 3)
    ]
    return [
        *found,
        Row(name="colocated, ZeRO 3 offloaded", overrides=(*one, "trainer=zero3_offload")),
        Row(name="colocated, float32", overrides=(*one, "model.dtype=float32")),
        Row(name="colocated, adapters", overrides=(*one, "trainer=lora")),
        Row(name="colocated, no CUDA graphs", overrides=(*one, "rollout.compile=false")),
        Row(
            name="colocated, 2 ranks, ZeRO 3",
            overrides=(*two, "trainer.zero_stage=3", "placement.num_engines=2"),
            refusal=needs_two,
        ),
        Row(
            name="colocated, tensor parallel 2",
            overrides=(*two, "placement.tensor_parallel=2"),
            refusal=needs_two,
        ),
        Row(
            name="disaggregated (NCCL)",
            overrides=(*one, "placement=disaggregated", "placement.num_engines=1"),
            refusal=needs_two,
        ),
        Row(
            name="disaggregated, 2 ranks, ZeRO 3",
            overrides=(
                *two,
                "placement=disaggregated",
                "placement.num_engines=1",
                "trainer.zero_stage=3",
            ),
            refusal=needs_three,
        ),
    ]
