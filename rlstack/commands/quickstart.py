"""`rlstack quickstart`: a small model from nothing to a solved task, on the real stack.

Builds a model, warm-starts it with supervised training, improves it with GRPO, and measures it on
held-out problems before and after.
"""

import time
from datetime import datetime
from pathlib import Path

from rlstack.commands import rl, sft
from rlstack.commands.composing import composed_values
from rlstack.commands.demo_model import build_demo_model, write_demonstrations
from rlstack.config.data import ReasoningGymSource
from rlstack.config.load import parse
from rlstack.config.placement import PlacementConfig
from rlstack.config.run import RLConfig
from rlstack.config.supervised import SFTConfig

ACCURACY = "eval/pass@1"
DEMONSTRATIONS = "demonstrations.jsonl"


def warm_start(run_dir: Path, placement: PlacementConfig) -> list[str]:
    """Hydra overrides of the supervised part, on the devices of the RL part."""
    return [
        "experiment=sft_quickstart",
        f"model.path={run_dir}/model",
        f"run_dir={run_dir}/sft",
        f"placement.device={placement.device}",
        f"placement.trainer_ranks={placement.trainer_ranks}",
    ]


def run(overrides: list[str]) -> None:
    """Run the demo; `overrides` are Hydra overrides of its RL part."""
    start = time.perf_counter()
    run_dir = Path("runs/quickstart").absolute() / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    rl_paths = [f"model.path={run_dir}/sft/export", f"run_dir={run_dir}"]
    rl_values = composed_values("rl", ["experiment=quickstart", *overrides, *rl_paths])
    rl_config = parse(RLConfig, rl_values)
    # Both are checked before the first minute is spent.
    sft_config = parse(SFTConfig, composed_values("sft", warm_start(run_dir, rl_config.placement)))
    print("quickstart 1/3: building a model", flush=True)
    build_demo_model(run_dir / "model", seed=rl_config.seed)
    task, held_out = rl_config.data.train[0], rl_config.data.eval[0]
    assert isinstance(task, ReasoningGymSource)
    assert isinstance(held_out, ReasoningGymSource)
    # reasoning-gym seeds row i with seed + i: a seed further away than the size gives other rows.
    task = task.model_copy(update={"seed": task.seed + task.size})
    (run_dir / "sft").mkdir()
    write_demonstrations(
        run_dir / "sft" / DEMONSTRATIONS, source=task, held_out=held_out, seed=rl_config.seed
    )
    print("quickstart 2/3: supervised warm start", flush=True)
    if sft.run(sft_config).stopped_early:
        return
    print("quickstart 3/3: reinforcement learning (GRPO)", flush=True)
    summary = rl.run(rl_config)
    seconds = time.perf_counter() - start
    if summary.stopped_early:
        return
    before = summary.evaluations[min(summary.evaluations)][ACCURACY]
    after = summary.evaluations[max(summary.evaluations)][ACCURACY]
    print(
        f"quickstart: held-out accuracy {before:.2f} -> {after:.2f} in {seconds:.0f} s; "
        f"report: {summary.report}"
    )
