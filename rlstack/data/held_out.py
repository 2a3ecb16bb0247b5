"""Keeps evaluation honest: a held-out problem is never trained on."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rlstack.config.data import DataConfig, SourceConfig
from rlstack.data.dataset import Dataset, SampleT, SkipReport
from rlstack.errors import DataError

REASON = "held out for evaluation"


def without_held_out(train: Dataset[SampleT], held_out: Dataset[SampleT]) -> Dataset[SampleT]:
    """`train` less the rows whose rendered prompt is also in `held_out`, counted as skipped.

    Raises:
        DataError: if no row is left.
    """
    texts = {prompt.text for prompt in held_out.prompts}
    kept = tuple(
        replace(source, samples=tuple(p for p in source.samples if p.text not in texts))
        for source in train.sources
    )
    num_dropped = len(train.prompts) - sum(len(source.samples) for source in kept)
    if not num_dropped:
        return train
    if num_dropped == len(train.prompts):
        raise DataError(
            f"data.train: all {num_dropped} prompts are in data.eval too, so none is left to train "
            "on. Use other rows for one of them, or set data.eval=[]."
        )
    return Dataset(
        sources=tuple(source for source in kept if source.samples),
        skipped=SkipReport(
            counts={**train.skipped.counts, REASON: num_dropped}, messages=train.skipped.messages
        ),
    )


def train_and_held_out(
    config: DataConfig, load: Callable[[Sequence[SourceConfig]], Dataset[SampleT]]
) -> tuple[Dataset[SampleT], Dataset[SampleT]]:
    """The samples to train on, and those that are held out and so no part of them.

    load: reads sources.

    Raises:
        DataError: naming every bad row.
    """
    held_out = load(config.eval)
    return without_held_out(load(config.train), held_out), held_out
