"""What is recorded while transformers samples equals a pass over the whole answers, or is nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lens.integrations.trl_recorder import Recorder

LENGTH = 6
PROMPTS = torch.tensor([[0, 0, 7, 9, 4], [8, 11, 6, 12, 4], [0, 5, 9, 10, 4]])  # padded on the left with 0
ENDS = list(range(5, 60, 5))  # so many that answers have several lengths


def sample(tiny: tuple, recorder: Recorder | None = None, **options: Any) -> Tensor:
    """What `generate` returns for four answers to each prompt."""
    model, _ = tiny
    rows = PROMPTS.repeat_interleave(4, dim=0)
    given = {"input_ids": rows, "attention_mask": (rows != 0).long(), "max_new_tokens": LENGTH}
    given |= {"do_sample": True, "pad_token_id": 0, "eos_token_id": ENDS, "top_k": 0}
    torch.manual_seed(0)
    if recorder is None:
        return model.generate(**given | options)
    with recorder.watching(model):
        return model.generate(**given | options)


def split(sampled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The prompts, the answers, and which of their tokens come no later than the first end."""
    prompts, ids = sampled[:, : PROMPTS.shape[1]], sampled[:, PROMPTS.shape[1] :]
    ends = torch.isin(ids, torch.tensor(ENDS)).long()
    return prompts, ids, ends.cumsum(dim=1) - ends == 0


def expect(model: PreTrainedModel, sampled: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the answers, each alone and without padding, in float64; 0 after the end."""
    prompts, ids, mask = split(sampled)
    logprobs, entropies = torch.zeros(2, *ids.shape, dtype=torch.float64)
    for n, (prompt, answer) in enumerate(zip(prompts, ids, strict=True)):
        prompt, answer = prompt[prompt != 0], answer[mask[n]]
        with torch.no_grad():
            logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        table = (logits.double() / temperature).log_softmax(dim=-1)
        logprobs[n, : len(answer)] = table[torch.arange(len(answer)), answer]
        entropies[n, : len(answer)] = -(table.exp() * table).sum(dim=1)
    return logprobs, entropies


CHOICES = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "cut": {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.3},
    "without a cache": {"use_cache": False},
}


@pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
def test_what_is_recorded_is_what_a_pass_gives(tiny, options):
    """Cuts and penalties change which tokens are drawn, and not how likely the policy says they are."""
    temperature = options.get("temperature", 1.0)
    recorder = Recorder(temperature, with_entropies=True)
    sampled = sample(tiny, recorder, **options)
    assert torch.equal(sampled, sample(tiny, **options))  # watching changes nothing
    prompts, ids, mask = split(sampled)
    assert not mask.all() and mask.all(dim=1).any()  # some answers end early, some meet the limit
    for found, expected in zip(recorder.read(prompts, ids, mask), expect(tiny[0], sampled, temperature), strict=True):
        torch.testing.assert_close(found.double()[mask], expected[mask], rtol=0, atol=1e-5)


def test_padding_and_fewer_tokens_than_were_sampled(tiny):
    recorder = Recorder(1.0, with_entropies=False)
    sampled = sample(tiny, recorder)
    prompts, ids, mask = split(sampled)
    whole, none = recorder.read(prompts, ids, mask)
    padding = torch.zeros(len(ids), 2, dtype=torch.int64)
    wide, _ = recorder.read(prompts, torch.cat([ids, padding], dim=1), torch.cat([mask, padding.bool()], dim=1))
    short, _ = recorder.read(prompts, ids[:, :3], mask[:, :3])
    assert none is None and whole[mask].isfinite().all()
    assert torch.equal(wide[:, :LENGTH], whole) and torch.equal(short, whole[:, :3])


def test_only_one_row_of_logits_an_answer_is_kept(tiny):
    recorder = Recorder(1.0, with_entropies=True)
    rows = len(sample(tiny, recorder))
    assert recorder.logits.untyped_storage().nbytes() == 4 * rows * tiny[0].config.vocab_size
    assert {values.shape for column in recorder.columns for values in column} == {(rows, 1)}


def change_an_answer(prompts: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ids = ids.clone()
    ids[0, 0] += 1
    return prompts, ids, mask


CHANGES = {
    "an answer": change_an_answer,
    "a prompt": lambda prompts, ids, mask: (prompts.flip(0), ids, mask),
    "the padding of prompts": lambda prompts, ids, mask: (prompts[:, 1:], ids, mask),
    "an answer more": lambda prompts, ids, mask: tuple(torch.cat([rows, rows[:1]]) for rows in (prompts, ids, mask)),
    "longer answers": lambda prompts, ids, mask: (prompts, ids.repeat(1, 2), mask.repeat(1, 2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_is_known_of_other_answers(tiny, change):
    recorder = Recorder(1.0, with_entropies=True)
    logprobs, entropies = recorder.read(*change(*split(sample(tiny, recorder))))
    assert logprobs.isnan().all() and entropies.isnan().all()


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"prefill_chunk_size": 2}])
def test_nothing_is_known_of_what_is_sampled_otherwise(tiny, options):
    recorder = Recorder(1.0, with_entropies=False)
    model, _ = tiny
    row = PROMPTS[1:2]
    with recorder.watching(model):
        sampled = model.generate(input_ids=row, max_new_tokens=LENGTH, do_sample=True, pad_token_id=0, **options)
    ids = sampled[:, row.shape[1] :]
    assert recorder.read(row, ids, ids >= 0)[0].isnan().all()


def test_nothing_is_known_without_sampling_or_after_a_second_one(tiny):
    recorder = Recorder(1.0, with_entropies=False)
    ids = PROMPTS.clone()
    assert recorder.read(PROMPTS, ids, ids >= 0)[0].isnan().all()
    sample(tiny, recorder)
    sampled = split(sample(tiny, recorder))
    assert recorder.read(*sampled)[0].isnan().all()


def test_an_error_while_sampling_leaves_no_hook(tiny):
    recorder = Recorder(1.0, with_entropies=False)
    with pytest.raises(ValueError, match="temperature"):
        sample(tiny, recorder, temperature=0.0)
    assert not tiny[0]._forward_hooks
