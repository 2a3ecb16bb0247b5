"""What a policy rank does with preferences: logprobs of whole responses, updates, evaluation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlstack.algorithms.preference_catalog import judged_loss, preference_loss
from rlstack.algorithms.preference_losses import kto_reference_point, sequence_logprobs
from rlstack.batch import Rows, SelectableRows
from rlstack.batches.preference_reference import JudgedPreferenceBatch, PreferenceBatch
from rlstack.config.preference import KTOObjective, PairObjective
from rlstack.data.microbatches import plan_evaluation
from rlstack.metrics import Metrics, merge
from workers.models.packed_rows import pack
from workers.ranks.policy import PolicyRank


class PreferenceLearning:
    """Of one rank; it is given whole batches and picks its own rows."""

    def __init__(self, rank: PolicyRank) -> None:
        self.rank = rank

    def response_logprobs(self, batch: SelectableRows) -> tuple[Tensor, Tensor]:
        """This rank's row indices (int64 [N]) and their responses' logprobs (float32 [N], sums).

        Any number of rows; the sums are over the loss tokens.
        """
        self.rank.engine.eval()
        indices: list[int] = []
        sums: list[Tensor] = []
        with torch.no_grad():
            for rows, counts in self._evaluation(batch.lengths):
                own = batch.select(torch.tensor(rows)).to(self.rank.device)
                found = sequence_logprobs(self._logprobs(own), own.loss_mask, average=False)
                if counts:
                    indices += rows
                    sums.append(found.cpu())
        return torch.tensor(indices, dtype=torch.int64), torch.cat([torch.zeros(0), *sums])

    def update_pairs(self, batch: PreferenceBatch, objective: PairObjective) -> Metrics:
        """One optimizer step on pairs; both responses of a pair are in the same micro-batch."""

        def loss_of(pairs: Sequence[int]) -> tuple[Tensor, Metrics]:
            own = batch.select_pairs(torch.tensor(pairs)).to(self.rank.device)
            logprobs = self._logprobs(own)
            return preference_loss(own, logprobs, objective=objective, prefix="preference")

        return self.rank.optimize(self.rank.own_microbatches(batch.pair_lengths), loss_of)

    def evaluate_pairs(self, batch: PreferenceBatch, objective: PairObjective) -> Metrics:
        """The metrics of held-out pairs, any number of them, as `eval/...`."""

        def measure(pairs: Sequence[int]) -> Metrics:
            own = batch.select_pairs(torch.tensor(pairs)).to(self.rank.device)
            logprobs = self._logprobs(own)
            return preference_loss(own, logprobs, objective=objective, prefix="eval")[1]

        return self._evaluate(batch.pair_lengths, measure)

    def update_judged(self, batch: JudgedPreferenceBatch, objective: KTOObjective) -> Metrics:
        """One optimizer step on judged responses."""
        reference_point = self._reference_point(batch)

        def loss_of(rows: Sequence[int]) -> tuple[Tensor, Metrics]:
            own = batch.select(torch.tensor(rows)).to(self.rank.device)
            return judged_loss(
                own,
                self._logprobs(own),
                reference_point=reference_point,
                objective=objective,
                prefix="preference",
            )

        return self.rank.optimize(self.rank.own_microbatches(batch.lengths), loss_of)

    def evaluate_judged(self, batch: JudgedPreferenceBatch, objective: KTOObjective) -> Metrics:
        """The metrics of held-out judged responses, any number of them, as `eval/...`."""
        reference_point = self._reference_point(batch)

        def measure(rows: Sequence[int]) -> Metrics:
            own = batch.select(torch.tensor(rows)).to(self.rank.device)
            return judged_loss(
                own,
                self._logprobs(own),
                reference_point=reference_point,
                objective=objective,
                prefix="eval",
            )[1]

        return self._evaluate(batch.lengths, measure)

    def _reference_point(self, batch: JudgedPreferenceBatch) -> Tensor:
        """KTO's z_0 of the whole batch, [], on this rank's device; every rank takes part."""
        rows, sums = self.response_logprobs(batch.mismatched)
        everywhere = torch.zeros(batch.mismatched.num_rows)
        everywhere[rows] = sums
        # Of all ranks together: the clamp at 0 does not commute with a mean over ranks.
        everywhere = everywhere.to(self.rank.device)
        torch.distributed.all_reduce(everywhere)
        reference = batch.mismatched_ref_logprobs.to(self.rank.device)
        return kto_reference_point(everywhere, reference)

    def _evaluate(self, lengths: Tensor, measure: Callable[[Sequence[int]], Metrics]) -> Metrics:
        self.rank.engine.eval()
        with torch.no_grad():
            measured = [(measure(rows), counts) for rows, counts in self._evaluation(lengths)]
        return merge(metrics for metrics, counts in measured if counts)

    def _evaluation(self, lengths: Tensor) -> Sequence[tuple[tuple[int, ...], bool]]:
        """This rank's micro-batches, and whether each counts: all ranks have as many."""
        plan = plan_evaluation(
            lengths.tolist(),
            num_ranks=self.rank.spec.num_ranks,
            max_tokens=self.rank.spec.trainer.max_tokens_per_microbatch,
        )
        return plan[self.rank.rank]

    def _logprobs(self, rows: Rows) -> Tensor:
        """Float32 [B, T], nats, 0 where loss_mask is False."""
        packed = pack(rows.token_ids.cpu(), rows.attention_mask.cpu(), rows.loss_mask.cpu())
        logprobs, _ = self.rank.forward(packed.to(self.rank.device), entropy_gradient=False)
        zeros = torch.zeros(rows.loss_mask.shape, device=self.rank.device)
        return zeros.masked_scatter(rows.loss_mask, logprobs)
