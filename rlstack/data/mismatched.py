"""Responses behind the prompts of others: what KTO estimates the KL to the reference with."""

from collections.abc import Sequence
from dataclasses import replace

from rlstack.errors import DataError
from rlstack.seeds import Domain, generator
from rlstack.types import JudgedResponse


def mismatched(responses: Sequence[JudgedResponse], *, seed: int) -> list[JudgedResponse]:
    """Each prompt with the response of another prompt; the same for the same rows and seed.

    Every response is used once, if no prompt has more than half of them.

    Raises:
        DataError: if all prompts are the same.
    """
    if len({r.text for r in responses}) < 2:
        raise DataError(
            "data: KTO puts responses behind other prompts, and all rows have the same prompt; "
            "give rows with at least two prompts, in data.train and in data.eval"
        )
    order = generator(seed, Domain.MISMATCHED).permutation(len(responses))
    by_prompt: dict[str, list[int]] = {}
    for index in order:
        by_prompt.setdefault(responses[index].text, []).append(int(index))
    # Prompt after prompt, turned by the longest run: then no row meets its own prompt's responses.
    laid_out = [index for run in by_prompt.values() for index in run]
    turn = max(len(run) for run in by_prompt.values())
    if 2 * turn > len(laid_out):
        return [_with_response_of(r, _next_other(responses, laid_out, r)) for r in responses]
    partner = dict(zip(laid_out, laid_out[turn:] + laid_out[:turn], strict=True))
    return [_with_response_of(r, responses[partner[i]]) for i, r in enumerate(responses)]


def _next_other(
    responses: Sequence[JudgedResponse], order: Sequence[int], response: JudgedResponse
) -> JudgedResponse:
    return next(responses[i] for i in order if responses[i].text != response.text)


def _with_response_of(prompt: JudgedResponse, other: JudgedResponse) -> JudgedResponse:
    return replace(prompt, response=other.response, response_ids=other.response_ids)
