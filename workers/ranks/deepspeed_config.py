"""Our configuration of trainers and frozen models as DeepSpeed's; pure."""

from typing import Any

from rlstack.config.model import ModelConfig
from rlstack.config.trainer import TrainerConfig


def deepspeed_config(model: ModelConfig, trainer: TrainerConfig) -> dict[str, Any]:
    """DeepSpeed's JSON configuration.

    Micro-batches are ours (token-budgeted, a different number each update), so DeepSpeed is told of
    one sample per step and the trainer marks the accumulation boundary itself.
    """
    zero = _zero(trainer.zero_stage, offload_parameters=trainer.offload_parameters)
    if trainer.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    # Without ZeRO DeepSpeed adds gradients up in the weights' dtype alone.
    sums = {"grad_accum_dtype": "fp32"} if trainer.zero_stage > 0 else {}
    return _common(model.dtype, zero) | {
        # In bf16 the sum over micro-batches and ranks would lose what single ones add to it.
        "data_types": sums,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": trainer.max_grad_norm,
        # torch's AdamW is the same on CPU and GPU, and one kernel on each that is there already:
        # DeepSpeed's own are compiled where the run is, by nvcc, or by C++ for host memory.
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": trainer.learning_rate,
                "betas": list(trainer.betas),
                "weight_decay": trainer.weight_decay,
                "torch_adam": True,
                "fused": True,
            },
        },
        # AdamW of torch is not one of the optimizers DeepSpeed vouches for under offload.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def frozen_config(dtype: str, *, offload_parameters: bool = False) -> dict[str, Any]:
    """Of a model that is sharded and only computes (ZeRO-3 without an optimizer)."""
    return _common(dtype, _zero(3, offload_parameters=offload_parameters))


def _zero(stage: int, *, offload_parameters: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # Small parameters stay whole on every rank unless told otherwise; the layout is then the
        # same for every model size.
        zero["stage3_param_persistence_threshold"] = 0
    if offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def _common(dtype: str, zero: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
