"""Packed, chunked logprobs against plain transformers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlstack.config.model import ModelConfig
from rlstack.errors import ConfigError
from tests.tiny_model import write_tiny_model
from workers.models.heads import TokenLogprobs
from workers.models.packed_rows import pack
from workers.models.preflight import check_model, check_positions
from workers.models.pretrained import load_causal_model

CPU = torch.device("cpu")


def model_config(path: Path) -> ModelConfig:
    return ModelConfig(path=str(path), dtype="float32", trust_remote_code=False)


def random_rows(*, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and loss mask of rows of different lengths, one without loss."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 17, 9, 30])
    token_ids = torch.randint(3, 90, (4, 30), generator=generator)
    attention_mask = torch.arange(30) < lengths.unsqueeze(1)
    loss_mask = attention_mask & (torch.arange(30) >= 3)
    loss_mask[2] = False
    return token_ids.masked_fill(~attention_mask, 0), attention_mask, loss_mask


def plain_values(path: Path, temperature: float) -> tuple[Tensor, Tensor, AutoModelForCausalLM]:
    """Logprobs and entropy of the loss tokens, row by row, whole logits, eager attention."""
    token_ids, attention_mask, loss_mask = random_rows()
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    logprobs, entropies = [], []
    for row in range(len(token_ids)):
        ids = token_ids[row, attention_mask[row]]
        distribution = (model(ids.unsqueeze(0)).logits[0, :-1] / temperature).log_softmax(-1)
        chosen = distribution.gather(1, ids[1:].unsqueeze(1)).squeeze(1)
        mask = loss_mask[row, attention_mask[row]][1:]
        logprobs.append(chosen[mask])
        entropies.append(-(distribution.exp() * distribution).sum(-1)[mask])
    return torch.cat(logprobs), torch.cat(entropies), model


@pytest.mark.parametrize("sliding_window", [None, 4])
@pytest.mark.parametrize("chunk_tokens", [7, 1000])
def test_packed_chunked_values_and_gradients_equal_plain_ones(
    tmp_path: Path, chunk_tokens: int, sliding_window: int | None
) -> None:
    write_tiny_model(tmp_path, sliding_window=sliding_window)
    expected_logprobs, expected_entropy, plain = plain_values(tmp_path, temperature=0.7)
    (expected_logprobs.sum() + 0.1 * expected_entropy.sum()).backward()

    model = load_causal_model(model_config(tmp_path), device=CPU)
    module = TokenLogprobs(model, chunk_tokens=chunk_tokens)
    packed = pack(*random_rows())
    logprobs, entropy = module(packed, temperature=0.7, entropy_gradient=True)
    (logprobs.sum() + 0.1 * entropy.sum()).backward()

    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    for (name, parameter), (_, expected) in zip(
        model.named_parameters(), plain.named_parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad, expected.grad, atol=2e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("chunk_tokens", [5, 1000])
def test_the_likeliest_tokens_are_found(tmp_path: Path, chunk_tokens: int) -> None:
    write_tiny_model(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        token_ids = plain.generate(torch.tensor([[10, 20, 30]]), max_new_tokens=12, do_sample=False)
        token_ids[0, 7] += 1
        expected = (plain(token_ids).logits[0, :-1].argmax(-1) == token_ids[0, 1:])[2:].float()
        attention_mask = torch.ones_like(token_ids, dtype=torch.bool)
        packed = pack(token_ids, attention_mask, torch.arange(token_ids.shape[1])[None] >= 3)
        model = load_causal_model(model_config(tmp_path), device=CPU)
        module = TokenLogprobs(model, chunk_tokens=chunk_tokens)
        logprobs, greedy = module(packed, temperature=0.7, greedy=True)
        assert torch.equal(logprobs, module(packed, temperature=0.7)[0])
    assert expected[:4].all()
    assert not expected[4]
    assert torch.equal(greedy, expected)


def test_entropy_is_detached_unless_asked_for(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    module = TokenLogprobs(load_causal_model(model_config(tmp_path), device=CPU), chunk_tokens=1000)
    _, entropy = module(pack(*random_rows()), temperature=1.0)
    assert not entropy.requires_grad


def test_rows_without_loss_tokens_give_a_gradient_path(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    module = TokenLogprobs(load_causal_model(model_config(tmp_path), device=CPU), chunk_tokens=1000)
    token_ids, attention_mask, loss_mask = random_rows()
    logprobs, _ = module(
        pack(token_ids, attention_mask, torch.zeros_like(loss_mask)), temperature=1.0
    )
    logprobs.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_a_loss_token_at_the_start_of_a_row_is_refused() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="first token"):
        pack(torch.ones(1, 3, dtype=torch.int64), mask, mask)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path: '.*nowhere'.*config\.json"):
        check_model(model_config(tmp_path / "nowhere"))


def test_rows_longer_than_the_model_are_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    check_positions(model_config(tmp_path), longest_row=512)
    with pytest.raises(ConfigError, match=r"513 tokens.* 512 positions"):
        check_positions(model_config(tmp_path), longest_row=513)
