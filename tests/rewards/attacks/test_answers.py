"""No answer of the corpus earns the reward, none takes long or much memory."""

import resource
import subprocess
import sys
import time

import pytest

from rewards.shipped.math_answer import math_answer
from rlstack.types import RewardRequest
from tests.rewards.attacks.answers import ATTACKS, Attack

# Far above what any takes; an answer that does not end is ended by pytest's own time-out.
MAX_SECONDS = 5.0


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.tries)
def test_earns_nothing(attack: Attack) -> None:
    start = time.perf_counter()
    score = math_answer(
        RewardRequest(prompt=attack.prompt, response=attack.response, answer=attack.answer)
    )
    assert score.value == 0.0
    assert time.perf_counter() - start < MAX_SECONDS


def test_each_names_what_it_tries_once() -> None:
    assert len({attack.tries for attack in ATTACKS}) == len(ATTACKS) >= 60


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.tries)
def test_its_true_answer_would_have_earned_it(attack: Attack) -> None:
    response = f"\\boxed{{{attack.answer}}}"
    assert math_answer(RewardRequest(prompt="", response=response, answer=attack.answer)).value == 1


def test_all_of_them_fit_into_one_process_with_little_memory() -> None:
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from rewards.shipped.math_answer import math_answer\n"
        "from rlstack.types import RewardRequest\n"
        "from tests.rewards.attacks.answers import ATTACKS\n"
        "for a in ATTACKS:\n"
        "    math_answer(RewardRequest(prompt=a.prompt, response=a.response, answer=a.answer))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 << 20  # KiB
