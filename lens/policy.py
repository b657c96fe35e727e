"""The model being trained: loading it, and the log-probabilities of sampled tokens in little memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from lens.distributed import call, total, turns, world_size
from lens.errors import ConfigError
from lens.sampling.rollouts import Rollouts

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_model(
    name_or_path: str, *, dtype: str = "float32", attention: str | None = None, key: str = "model.name_or_path"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, by Hugging Face name or folder; safetensors only, no remote code.

    The model is on the GPU where there is one; where several processes share it, that is left to `shard`. Dropout is
    off: the probabilities that are trained are those that were sampled from. ``attention`` is transformers' name of an
    implementation, None its choice; ``key`` is where the model's name stands in the config, for error messages.

    Raises:
        ConfigError: no such model, a folder without tokenizer or whole weights, an unknown dtype, no end token.
    """
    if dtype not in DTYPES:
        raise ConfigError("model.dtype", dtype, f"one of {', '.join(DTYPES)}")
    folder = Path(name_or_path)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ConfigError(key, name_or_path, "a folder in Hugging Face format (it has no config.json)")
    if folder.exists() and not list(folder.glob("*.safetensors")):
        raise ConfigError(key, name_or_path, "a folder with weights (it has no *.safetensors)")
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        chosen = {"dtype": DTYPES[dtype], "attn_implementation": attention}
        model = AutoModelForCausalLM.from_pretrained(name_or_path, use_safetensors=True, **chosen)
    except ImportError as error:
        valid = f"an attention that runs here ({str(error).strip().splitlines()[0]})"
        raise ConfigError("model.attention", attention, valid) from error
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(key, name_or_path, f"a causal language model by name or folder ({reason})") from error
    if tokenizer.eos_token_id is None and model.generation_config.eos_token_id is None:
        raise ConfigError(key, name_or_path, "a tokenizer with an end-of-sequence token")
    return model.eval().to("cuda" if torch.cuda.is_available() and world_size() == 1 else "cpu"), tokenizer


class TokenValues(NamedTuple):
    """Values of sampled tokens, flat: [n], completion after completion in the order asked for."""

    logprobs: Tensor
    entropies: Tensor


def token_values(
    model: PreTrainedModel,
    rollouts: Rollouts,
    packs: Sequence[Sequence[int]],
    *,
    temperature: float,
    logits_chunk_size: int,
    autocast: str | None = None,
    entropy_gradient: bool = False,
    gradient_checkpointing: bool = False,
    torch_compile: bool = False,
) -> TokenValues:
    """Log-probability and entropy of every sampled token of some completions, with gradients where they are on.

    The language-model head sees completion tokens alone, a chunk at a time, and is computed again in the backward
    pass: the largest buffer is chunk x vocabulary, whatever the length of prompts and completions.

    Args:
        model: a causal language model whose head is a plain linear map of its last hidden state.
        rollouts: the completions.
        packs: which of them, as lists of completions of one question that share the pass over their prompt.
        temperature: the one they were sampled at; it divides the logits here too.
        logits_chunk_size: tokens whose logits are in memory at once.
        autocast: data type of the body's matrix products ("bfloat16"), or None for that of the weights; the head and
            what follows it keep theirs.
        entropy_gradient: let the entropies carry gradients too, which costs memory of a chunk of logits.
        gradient_checkpointing: keep of each layer its input alone, and compute the layer again in the backward pass.
        torch_compile: run the layers as torch.compile makes them.

    Returns:
        `TokenValues`, float32 at least.
    """
    layout = lay_out(rollouts, packs, flat=is_flat(model)).to(model.device)
    checkpointing = gradient_checkpointing and torch.is_grad_enabled()
    changed = checkpointing or torch_compile
    layers = changed_layers(model, checkpointing, torch_compile) if changed else nullcontext()

    def values(model: PreTrainedModel) -> tuple[Tensor, ...]:
        with torch.autocast(model.device.type, DTYPES[autocast or "bfloat16"], enabled=autocast is not None), layers:
            hidden = model.base_model(
                input_ids=layout.ids, position_ids=layout.positions, attention_mask=layout.mask, use_cache=False
            ).last_hidden_state[layout.predicting]  # [n, H]
        head = model.get_output_embeddings()
        hidden = hidden.to(head.weight.dtype)
        chunks = [
            checkpoint(_head_values, head, h, t, temperature, entropy_gradient, use_reentrant=False)
            if torch.is_grad_enabled()
            else _head_values(head, h, t, temperature, False)
            for h, t in zip(hidden.split(logits_chunk_size), layout.targets.split(logits_chunk_size), strict=True)
        ]
        return tuple(torch.cat(values) for values in zip(*chunks, strict=True))

    return TokenValues(*call(model, values))


def decoder_layers(model: PreTrainedModel, key: str) -> list[GradientCheckpointingLayer]:
    """The layers, as transformers marks them, that can be compiled, or computed again in the backward pass.

    Raises:
        ConfigError: the model has none; ``key`` is what asks for them.
    """
    if layers := [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        return layers
    valid = f"false: transformers marks no layers of {type(model).__name__} for it"
    raise ConfigError(key, True, valid)


def check_layers(model: PreTrainedModel, *, gradient_checkpointing: bool, torch_compile: bool) -> None:
    """Whether the layers can do what is asked of them; torch.compile is tried.

    Raises:
        ConfigError: they cannot, or nothing can be compiled on this machine.
    """
    if gradient_checkpointing:
        decoder_layers(model, "trainer.gradient_checkpointing")
    if torch_compile:
        decoder_layers(model, "trainer.torch_compile")
        try:
            torch.compile(torch.sin)(torch.ones(1, device=model.device))
        except torch._dynamo.exc.TorchDynamoException as error:
            valid = f"false, or a machine with what torch.compile needs ({str(error).strip().splitlines()[0]})"
            raise ConfigError("trainer.torch_compile", True, valid) from error


@cache
def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward method compiled, for all layers of its class and all lengths."""
    return torch.compile(forward, dynamic=True)


@contextmanager
def changed_layers(model: PreTrainedModel, checkpointing: bool, torch_compile: bool) -> Iterator[None]:
    """Meanwhile layers run compiled, or a forward pass keeps of each its input alone; the backward pass may come later.

    transformers' own switch asks for training mode, which turns dropout on in some layers, and takes the cache away
    from whoever samples with the model; and a module's own compile() would compile that sampling too.
    """
    layers = decoder_layers(model, "trainer.gradient_checkpointing" if checkpointing else "trainer.torch_compile")
    for layer in layers:
        forward = MethodType(compiled(type(layer).forward), layer) if torch_compile else layer.forward
        layer.forward = partial(checkpoint, forward, use_reentrant=False) if checkpointing else forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own comes to light again


class Layout(NamedTuple):
    """Packs as the model reads them: B rows of at most L tokens, right-padded; flat packs are one row without padding.

    Attributes:
        ids: int64 [B, L], a prompt and after it its completions.
        positions: int64 [B, L]; each completion goes on from the prompt's end.
        mask: bool [B, 1, L, L], who sees whom; None where plain causal attention says the same, or where a row's
            positions do, which begin anew with each pack.
        predicting: int64 [n] twice, row and place of the token before each sampled one.
        targets: int64 [n], the sampled tokens.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | None
    predicting: tuple[Tensor, Tensor]
    targets: Tensor

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        predicting = tuple(index.to(device) for index in self.predicting)
        return Layout(self.ids.to(device), self.positions.to(device), mask, predicting, self.targets.to(device))


def lay_out(rollouts: Rollouts, packs: Sequence[Sequence[int]], *, flat: bool = False) -> Layout:
    """A prompt's completions one after the other, blind to each other: each pack a row, or flat, all in one row."""
    prompts = [rollouts.prompts[pack[0] // rollouts.num_generations].token_ids for pack in packs]
    lengths = [rollouts.lengths[list(pack)].tolist() for pack in packs]
    sizes = [len(prompt) + sum(each) for prompt, each in zip(prompts, lengths, strict=True)]
    shape = (1, sum(sizes)) if flat else (len(packs), max(sizes))
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    part = torch.full(shape, -1)  # 0: prompt; 1, 2, ...: the completions; -1: padding
    places = []
    for number, (pack, prompt, each) in enumerate(zip(packs, prompts, lengths, strict=True)):
        row, first = (0, sum(sizes[:number])) if flat else (number, 0)
        start = first + len(prompt)
        ids[row, first:start], positions[row, first:start] = torch.tensor(prompt), torch.arange(len(prompt))
        part[row, first:start] = 0
        for completion, (index, length) in enumerate(zip(pack, each, strict=True), start=1):
            own = slice(start, start + length)
            ids[row, own] = rollouts.completion_ids[index, :length]
            positions[row, own] = torch.arange(len(prompt), len(prompt) + length)
            part[row, own] = completion
            before = torch.arange(start - 1, start + length - 1)
            before[0] = first + len(prompt) - 1
            places.append((torch.full((length,), row), before))
            start += length
    mask = None
    if any(len(pack) > 1 for pack in packs):
        sees = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])  # [B, L, L]
        mask = (sees & torch.ones(shape[1], shape[1], dtype=torch.bool).tril())[:, None]
    targets = torch.cat([rollouts.completion_ids[row, : rollouts.lengths[row]] for pack in packs for row in pack])
    return Layout(ids, positions, mask, tuple(torch.cat(each) for each in zip(*places, strict=True)), targets)


def is_flat(model: PreTrainedModel) -> bool:
    """Whether sequences stand in one row without padding: flash attention tells them apart by their positions."""
    return "flash" in model.config._attn_implementation


def _head_values(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [c] of the targets and entropies [c] of one chunk of hidden states [c, H]."""
    logits = head(hidden)  # [c, V]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_normaliser = logits.logsumexp(dim=-1)  # [c]
    logprobs = logits.gather(1, targets[:, None]).squeeze(1) - log_normaliser  # [c]
    with torch.set_grad_enabled(entropy_gradient):
        entropies = log_normaliser - (logits.softmax(dim=-1) * logits).sum(dim=-1)  # [c]
    return logprobs, entropies


def microbatches(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int
) -> Iterator[list[list[int]]]:
    """Split completions into micro-batches of packs, at most max_tokens each with padding; the longest come first.

    Raises:
        ConfigError: one completion with its prompt is longer than max_tokens.
    """
    packs = sorted(pack_completions(model, rollouts, rows, max_tokens), key=lambda pack: (-pack[0], pack[1]))
    if packs and packs[0][0] > max_tokens:
        raise ConfigError("trainer.max_tokens_per_microbatch", max_tokens, f"at least {packs[0][0]}")
    batch, tokens, flat, longest = [], 0, is_flat(model), 0
    for size, pack in packs:
        if batch and tokens + (size if flat else longest) > max_tokens:
            yield batch
            batch, tokens = [], 0
        if not batch:
            longest = size
        batch.append(pack)
        tokens += size if flat else longest
    if batch:
        yield batch


def pack_completions(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """Packs of a question's completions, the longest first, and their tokens.

    A pack saves passes over the prompt and costs attention, as the completions meet without seeing each other. With
    P prompt tokens and N of completions, a pack's cost for each completion is least at N = sqrt(P (P + c)), where c is
    the length at which attention costs as much as all else.
    """
    config = model.config.get_text_config()
    body = model.base_model.num_parameters(exclude_embeddings=True)
    c = body / (2 * config.num_hidden_layers * config.hidden_size)
    shares = model.config._attn_implementation == "sdpa"  # the attention that takes any mask
    lengths, by_question = rollouts.lengths.tolist(), {}
    for row in rows:
        by_question.setdefault(row // rollouts.num_generations, []).append(row)
    for question, members in by_question.items():
        prompt = len(rollouts.prompts[question].token_ids)
        room = min(math.sqrt(prompt * (prompt + c)), max_tokens - prompt) if shares else 0
        pack, size = [], 0
        for row in sorted(members, key=lambda row: (-lengths[row], row)):
            if pack and size + lengths[row] > room:
                yield prompt + size, pack
                pack, size = [], 0
            pack, size = [*pack, row], size + lengths[row]
        yield prompt + size, pack


@torch.no_grad()
def recompute(
    model: PreTrainedModel,
    rollouts: Rollouts,
    *,
    temperature: float,
    logits_chunk_size: int,
    max_tokens: int,
    autocast: str | None = None,
    torch_compile: bool = False,
) -> tuple[Tensor, Tensor]:
    """The model's own log-probabilities and entropies of all sampled tokens: [Q*G, T] each, 0 beyond the lengths."""
    logprobs = torch.zeros_like(rollouts.logprobs)
    entropies = torch.zeros_like(rollouts.logprobs)
    mask = rollouts.mask
    for packs, counts in turns(list(microbatches(model, rollouts, range(len(rollouts.lengths)), max_tokens))):
        rows = [row for pack in packs for row in pack]
        values = token_values(
            model,
            rollouts,
            packs,
            temperature=temperature,
            logits_chunk_size=logits_chunk_size,
            autocast=autocast,
            torch_compile=torch_compile,
        )
        for whole, part in zip((logprobs, entropies), values, strict=True):
            block = torch.zeros_like(whole[rows])
            block[mask[rows]] = part.to(block)
            whole[rows] = block * counts
    return total(logprobs), total(entropies)
