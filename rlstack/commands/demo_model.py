"""What the quickstart starts from: a small random model, and demonstrations of mixed quality."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reasoning_gym
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar

from rlstack.config.data import ReasoningGymSource

END, PAD = "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '> ' }}{% endif %}"
)
INSTRUCTION = ("Spell", " this", " word", " backward", " (example:", " sun", " ->", " nus):")
"""The words of the task's instruction are tokens of their own: prompts are 15 tokens, not 60."""

CORRECT_SHARE = 0.4
"""Share of demonstrations that do what is asked; the others just repeat the word."""


def build_demo_model(directory: Path, *, seed: int, words: Sequence[str] = INSTRUCTION) -> None:
    """Write a random Qwen2 of about 1M parameters and a byte-level tokenizer, in HF format.

    words: those that are tokens of their own.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    disable_progress_bar()  # there is nothing to wait for
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)


def write_demonstrations(
    file: Path, *, source: ReasoningGymSource, held_out: ReasoningGymSource, seed: int
) -> None:
    """Write JSONL rows of `source` (spell_backward), most of which repeat the word unreversed.

    A model that imitates them knows how to spell backward and seldom does: the state of a model
    after pre-training that reinforcement learning is meant for. Problems of `held_out` are left
    out: tasks draw from a finite list of words, so other seeds give many of the same problems.
    """
    held_out_questions = {entry["question"] for entry in _entries(held_out)}
    generator = np.random.default_rng(seed)
    with file.open("w") as lines:
        for entry in _entries(source):
            if entry["question"] in held_out_questions:
                continue
            answer = str(entry["answer"])
            correct = generator.random() < CORRECT_SHARE
            row = {
                "messages": [{"role": "user", "content": entry["question"]}],
                "response": answer if correct else answer[::-1],
                "data_source": source.task,
            }
            lines.write(json.dumps(row) + "\n")


def _entries(source: ReasoningGymSource) -> Iterator[dict[str, Any]]:
    task = reasoning_gym.create_dataset(
        source.task, size=source.size, seed=source.seed, **source.params
    )
    yield from task
