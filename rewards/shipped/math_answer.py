"""Reward `math_answer`: the response's final answer equals the reference as mathematics.

Nothing here limits time: the answer is bounded before it is parsed, and what is left over is ended
by the scorer.
"""

from rewards.mathematics.equality import same_answer
from rewards.mathematics.final_answer import BOX, final_answer
from rewards.mathematics.reading import (
    Answer,
    Quantified,
    Words,
    read_answer,
)
from rewards.registry import register
from rlstack.types import RewardRequest, Score


@register("math_answer", requires=("math_verify",))
def math_answer(request: RewardRequest) -> Score:
    r"""1.0 if the final answer is mathematically equal to the reference answer, else 0.0.

    The final answer is the last `\boxed{...}` (with the other boxes of its sentence); without one,
    what stands after `####`, after "the answer is", or the last formula or number near the end.
    Several answers to choose from are none of them. Numbers are compared exactly; a decimal of six
    or more digits also equals what it is a rounding of. A percentage equals the number before its
    sign and its hundredth. A missing unit is any unit, two known units are converted.

    The value is None if there is no reference answer or it is not mathematics that can be read
    (plain words, for instance: use `exact_match`).
    """
    text = final_answer(request.response, request.prompt)
    found = None if text is None else read_answer(text)
    extracted = _spelling(found, text)
    reference = None if request.answer is None else _reference(request.answer)
    if reference is None:
        return Score(value=None, extracted_answer=extracted)
    equal = found is not None and same_answer(reference, found)
    return Score(value=float(equal), extracted_answer=extracted)


def _reference(answer: str) -> Answer | None:
    """A reference is LaTeX or plain mathematics, or a solution that ends in one."""
    answer = answer.rsplit("####", maxsplit=1)[-1].strip()
    if BOX in answer or len(answer) > 200 or answer.count("$") > 2:
        stated = final_answer(answer)
        return None if stated is None else read_answer(stated)
    read = read_answer(answer)
    # Words are compared only where they are marked as the answer, as \text{}.
    return None if isinstance(read, Words) and "\\" not in answer else read


def _spelling(answer: Answer | None, text: str | None) -> str | None:
    """One spelling per value, so that majority voting counts 0.50 and 2/4 together."""
    if answer is None or text is None:
        return None
    if isinstance(answer, Quantified):
        scalar = answer.scalar
        if scalar.exact is not None and scalar.percent:
            return str(scalar.exact / 100)
        return scalar.spelling
    return " ".join(text.split())
