"""`rlstack sft`: supervised training on demonstrations, with the same trainer as RL."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import torch

from rlstack.batch import SFTBatch
from rlstack.checkpoint import write_folder
from rlstack.config.load import dump
from rlstack.config.run import SFTConfig
from rlstack.data.dataset import Demonstration, load_demonstrations
from rlstack.data.sampler import PromptSampler
from rlstack.stages.common import check_unused, stop_signals
from rlstack.timeline import Timeline
from rlstack.tracking import Tracker
from workers.launch import LaunchSpec, launch
from workers.loading import check_model, check_positions, load_tokenizer
from workers.lora import check_adapters
from workers.specs import TrainedRole


def run(config: SFTConfig) -> Path:
    """Train for `total_steps` optimizer steps; the folder with the exported model."""
    return asyncio.run(_run(config))


async def _run(config: SFTConfig) -> Path:
    run_dir = Path(config.run_dir)
    check_unused(run_dir)
    check_model(config.model)
    check_adapters(config.model, config.trainer.lora, key="trainer.lora")
    longest_row = config.data.max_prompt_tokens + config.max_response_tokens
    check_positions(config.model, longest_row=longest_row)
    tokenizer = load_tokenizer(config.model)
    demonstrations = load_demonstrations(
        config.data.train,
        tokenizer,
        config=config.data,
        max_response_tokens=config.max_response_tokens,
    )
    sampler = PromptSampler(
        demonstrations,
        seed=config.seed,
        shuffle=config.data.shuffle,
        curriculum=config.data.curriculum,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump(config))
    async with AsyncExitStack() as stack:
        tracker = stack.enter_context(
            Tracker.open(
                config.tracking, run_dir=run_dir, total_steps=config.total_steps, title="sft"
            )
        )
        tracker.note(demonstrations.summary("demonstrations"))
        tracker.phase("starting trainers")
        spec = LaunchSpec(
            placement=config.placement,
            model=config.model,
            seed=config.seed,
            policy=TrainedRole(
                model=config.model, trainer=config.trainer, total_updates=config.total_steps
            ),
            ray_address=config.ray_address,
        )
        workers = await stack.enter_async_context(launch(spec))
        assert workers.policy is not None
        stop = stack.enter_context(stop_signals())  # after Ray, which sets handlers of its own
        timeline = Timeline(run_dir, on_span=tracker.span)
        for step in range(1, config.total_steps + 1):
            timeline.begin_step(step)
            batch = collate_demonstrations(
                sampler.take(config.data.prompts_per_step), pad_token_id=tokenizer.pad_token_id
            )
            with timeline.span("update"):
                metrics = await workers.policy.update_supervised(batch)
            tracker.log(step, (metrics + timeline.end_step()).values())
            if stop.is_set():
                break
        tracker.phase("exporting")
        await write_folder(run_dir / "export", workers.policy.export)
    return run_dir / "export"


def collate_demonstrations(rows: list[Demonstration], *, pad_token_id: int) -> SFTBatch:
    """Right-pad prompts followed by their responses; the responses are the loss tokens."""
    lengths = [len(row.prompt_ids) + len(row.response_ids) for row in rows]
    shape = (len(rows), max(lengths))
    token_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = len(row.prompt_ids)
        token_ids[index, :start] = torch.from_numpy(row.prompt_ids)
        token_ids[index, start:length] = torch.from_numpy(row.response_ids)
        attention_mask[index, :length] = True
        loss_mask[index, start:length] = True
    return SFTBatch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        num_loss_tokens=int(loss_mask.sum()),
    )
