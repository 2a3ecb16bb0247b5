"""What the experiment rlhf_quickstart learns from: a task whose true reward is known.

A prompt names two letters and asks for words that begin with one of them. People are played by the
true reward `asked_words`: of two responses they prefer the better one, and mistake it now and then.
No response that they are shown says a word twice, so a reward model does not learn that this is
worth nothing: what a policy finds out that is left alone with it.

    python -m rlstack.commands.demo_words DIRECTORY    write model, demonstrations and preferences
"""

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from rewards.registry import register
from rlstack.types import RewardRequest

LINES = (
    "ant art ape arm bat bee box bun cat cow cup car dog day den dry egg ear elf end",
    "fox fog fan fit gem gas gum goat hat hen hop ham ink ice ivy iron jam jet jug job",
    "kid key kit kiwi leg log lip lamp map mud mix mice nut net nap nest oak owl oil oven",
    "pen pig pot pie",
)
WORDS = tuple(word for line in LINES for word in line.split())
"""Four for each of the letters a to p."""
LETTERS = "abcdefghijklmnop"
DOMAINS = {"early": LETTERS[:8], "late": LETTERS[8:]}
"""Prompts of which both letters are of one half, for experiments with experts."""
INSTRUCTION = ("Words", " with", " or")
"""Words of the prompt that are tokens of their own."""

NUM_ASKED = 4
MOST_WORDS = 6
SUITABLE_SHARE = 0.45
"""Of the words in a demonstration, or in a response that is compared."""
LABEL_NOISE = 0.1
NUM_DEMONSTRATIONS, NUM_PAIRS, NUM_HELD_OUT_PAIRS, NUM_HELD_OUT_PROMPTS = 6000, 6000, 400, 40


@register("asked_words")
def asked_words(request: RewardRequest) -> float:
    """Words that are asked for, minus all others, over 4: within [-1, 1].

    A word counts when it is in the list, begins with a letter of the prompt and was not said
    before; those beyond the fourth count as others.
    """
    first, second = request.metadata["letters"]
    return true_reward(request.response, letters=(first, second))


def true_reward(response: str, *, letters: Sequence[str]) -> float:
    """What `asked_words` says of a response to a prompt with these letters."""
    said: set[str] = set()
    total = 0
    for word in response.split():
        suits = word in WORDS and word[0] in letters and word not in said
        total += 1 if suits and len(said) < NUM_ASKED else -1
        if suits:
            said.add(word)
    return max(-1.0, min(1.0, total / NUM_ASKED))


def prompt_of(letters: Sequence[str]) -> dict[str, Any]:
    """The columns of a row that every command reads."""
    text = f"Words with {letters[0]} or {letters[1]}"
    return {"messages": [{"role": "user", "content": text}], "letters": list(letters)}


def both_orders(pairs: Iterable[tuple[str, ...]]) -> list[dict[str, Any]]:
    """The prompts with these letters, in either order."""
    return [prompt_of(order) for pair in pairs for order in (pair, pair[::-1])]


def draw_response(letters: Sequence[str], generator: np.random.Generator) -> str:
    """One to six different words of the list, fewer than half of which suit."""
    suitable = [word for word in WORDS if word[0] in letters]
    others = [word for word in WORDS if word[0] not in letters]
    count = int(generator.integers(1, MOST_WORDS + 1))
    num_suitable = int(generator.binomial(count, SUITABLE_SHARE))
    chosen = [
        *generator.choice(suitable, num_suitable, replace=False),
        *generator.choice(others, count - num_suitable, replace=False),
    ]
    generator.shuffle(chosen)
    return " ".join(str(word) for word in chosen)


def draw_pair(letters: Sequence[str], generator: np.random.Generator) -> dict[str, Any]:
    """Two responses of different worth; in a share `LABEL_NOISE` of pairs the worse is chosen."""
    while True:
        one, two = (draw_response(letters, generator) for _ in range(2))
        difference = true_reward(one, letters=letters) - true_reward(two, letters=letters)
        if difference != 0:
            break
    mistaken = generator.random() < LABEL_NOISE
    chosen, rejected = (one, two) if (difference > 0) != mistaken else (two, one)
    return {**prompt_of(letters), "chosen": chosen, "rejected": rejected}


def write_data(directory: Path, *, seed: int) -> None:
    """demonstrations, preferences, held_out_preferences, prompts, held_out_prompts: .jsonl files.

    Besides, the prompts of every domain: early, held_out_early, late, held_out_late. No held-out
    pair of letters, in either order, is in the others.
    """
    generator = np.random.default_rng(seed)
    pairs = [tuple(sorted(pair)) for pair in permutations(LETTERS, 2)]
    distinct = sorted(set(pairs))
    held_out = [distinct[i] for i in generator.permutation(len(distinct))[:NUM_HELD_OUT_PROMPTS]]
    train = sorted(set(distinct) - set(held_out))

    def some(letters: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        pair = letters[int(generator.integers(len(letters)))]
        return pair if generator.random() < 0.5 else pair[::-1]

    def demonstration(letters: Sequence[str]) -> dict[str, Any]:
        return {**prompt_of(letters), "response": draw_response(letters, generator)}

    rows: dict[str, Iterable[dict[str, Any]]] = {
        "demonstrations": (demonstration(some(train)) for _ in range(NUM_DEMONSTRATIONS)),
        "preferences": (draw_pair(some(train), generator) for _ in range(NUM_PAIRS)),
        "held_out_preferences": (
            draw_pair(some(held_out), generator) for _ in range(NUM_HELD_OUT_PAIRS)
        ),
        "prompts": both_orders(train),
        "held_out_prompts": (prompt_of(pair) for pair in held_out),
    }
    for domain, letters in DOMAINS.items():
        rows[domain] = [row for row in both_orders(train) if set(row["letters"]) <= set(letters)]
        rows[f"held_out_{domain}"] = [
            row for row in both_orders(held_out) if set(row["letters"]) <= set(letters)
        ]
    directory.mkdir(parents=True, exist_ok=True)
    for name, entries in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in entries)
        (directory / f"{name}.jsonl").write_text(lines)


def main() -> None:
    """Write everything that the experiment starts from."""
    from rlstack.commands.demo_model import build_demo_model

    directory = Path(sys.argv[1])
    build_demo_model(directory / "export", seed=0, words=INSTRUCTION)
    write_data(directory, seed=0)


if __name__ == "__main__":
    main()
