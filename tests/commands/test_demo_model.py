"""The quickstart's model and demonstrations."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlstack.commands.demo_model import CORRECT_SHARE, build_demo_model, write_demonstrations
from rlstack.config.data import ReasoningGymSource

WORDS = {"min_word_len": 3, "max_word_len": 4}
PROBLEM = "Spell this word backward (example: sun -> nus): ammonia"


def source(*, size: int, seed: int) -> ReasoningGymSource:
    return ReasoningGymSource(
        type="reasoning_gym", task="spell_backward", size=size, seed=seed, params=WORDS
    )


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo_model")
    build_demo_model(directory, seed=0)
    return directory


@pytest.mark.parametrize("text", [PROBLEM, "naïve → 42\n", "", "Spell sun ->backward"])
def test_any_text_survives_the_tokenizer(model_dir: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_prompt_is_short_and_the_word_is_spelled_in_letters(model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    messages = [{"role": "user", "content": PROBLEM}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == PROBLEM + "\n> "
    tokens = tokenizer.encode(text)
    assert len(tokens) < 20
    assert [tokenizer.decode([token]) for token in tokens[-10:-3]] == list("ammonia")


def test_model_loads_and_ends_sequences_as_its_tokenizer_does(model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_same_seed_gives_the_same_model(model_dir: Path, tmp_path: Path) -> None:
    build_demo_model(tmp_path / "same", seed=0)
    build_demo_model(tmp_path / "other", seed=1)
    weights = (model_dir / "model.safetensors").read_bytes()
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights


def test_demonstrations_are_mixed_and_leave_out_held_out_problems(tmp_path: Path) -> None:
    train, held_out = source(size=3000, seed=1), source(size=200, seed=1_000_000)
    file = tmp_path / "demonstrations.jsonl"
    write_demonstrations(file, source=train, held_out=held_out, seed=0)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    words = [row["messages"][0]["content"].split()[-1] for row in rows]
    write_demonstrations(tmp_path / "held_out", source=held_out, held_out=train, seed=0)
    assert len(rows) < train.size, "some words are in both lists, and were left out"
    for row, word in zip(rows, words, strict=True):
        assert row["response"] in (word, word[::-1])
    spelled = [r["response"] == w[::-1] for r, w in zip(rows, words, strict=True) if w != w[::-1]]
    assert abs(sum(spelled) / len(spelled) - CORRECT_SHARE) < 0.04
