"""The model being trained: loading it, and the log-probabilities of sampled tokens in little memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from lens.distributed import call, total, turns, world_size
from lens.errors import ConfigError
from lens.head import token_head
from lens.sampling.rollouts import Rollouts
from lens.shared_prompts import SHARED_PROMPTS, Sharing

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
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(SHARED_PROMPTS)
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
    entropies: Tensor | None


def token_values(
    model: PreTrainedModel,
    rollouts: Rollouts,
    packs: Sequence[Sequence[int]],
    *,
    temperature: float,
    logits_chunk_size: int,
    autocast: str | None = None,
    entropies: bool = True,
    gradient_checkpointing: bool = False,
    torch_compile: bool = False,
) -> TokenValues:
    """Log-probability and entropy of every sampled token of some completions, with gradients where they are on.

    The language-model head sees completion tokens alone, a chunk at a time, and is computed again in the backward
    pass: the largest buffer is chunk x vocabulary, whatever the length of prompts and completions.

    Args:
        model: a causal language model whose head is a plain linear map of its last hidden state.
        rollouts: the completions.
        packs: which of them, as lists of completions of one question, which share the pass over their prompt where the
            attention lets them.
        temperature: the one they were sampled at; it divides the logits here too.
        logits_chunk_size: tokens whose logits are in memory at once.
        autocast: data type of the body's matrix products ("bfloat16"), or None for that of the weights; the head and
            what follows it keep theirs.
        entropies: compute them too.
        gradient_checkpointing: keep of each layer its input alone, and compute the layer again in the backward pass.
        torch_compile: run the layers as torch.compile makes them.

    Returns:
        `TokenValues`, float32 at least.

    Raises:
        ConfigError: the model does not hand on to its attention who shares what.
    """
    if not shares_prompts(model):
        packs = [[row] for pack in packs for row in pack]
    layout = lay_out(rollouts, packs, flat=is_flat(model), sharing=shares_prompts(model)).to(model.device)
    checkpointing = gradient_checkpointing and torch.is_grad_enabled()
    changed = checkpointing or torch_compile
    layers = changed_layers(model, checkpointing, torch_compile) if changed else nullcontext()

    def values(model: PreTrainedModel) -> tuple[Tensor, ...]:
        with torch.autocast(model.device.type, DTYPES[autocast or "bfloat16"], enabled=autocast is not None), layers:
            hidden = model.base_model(
                input_ids=layout.ids, position_ids=layout.positions, use_cache=False, **layout.for_attention()
            ).last_hidden_state[layout.predicting]  # [n, H]
        if layout.sharing is not None and not layout.sharing.is_used:
            raise ConfigError(
                "model.attention", "sdpa", f"eager, as {type(model).__name__} does not hand on what is shared"
            )
        head = model.get_output_embeddings()
        return token_head(
            head,
            hidden.to(head.weight.dtype),
            layout.targets,
            temperature=temperature,
            chunk_size=logits_chunk_size,
            entropies=entropies,
        )

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
    """Packs as the model reads them: flat, all in one row without padding, or B rows of at most L tokens, right-padded.

    Attributes:
        ids: int64 [B, L], a prompt and after it its completions.
        positions: int64 [B, L]; each completion goes on from the prompt's end. They tell flash attention where in a
            flat row sequences begin.
        predicting: int64 [n] twice, row and place of the token before each sampled one.
        targets: int64 [n], the sampled tokens.
        sharing: who shares which prompt, where the attention knows of it.
    """

    ids: Tensor
    positions: Tensor
    predicting: tuple[Tensor, Tensor]
    targets: Tensor
    sharing: Sharing | None

    def to(self, device: torch.device) -> Layout:
        """The same on a device."""
        predicting = tuple(index.to(device) for index in self.predicting)
        sharing = None if self.sharing is None else self.sharing.to(device)
        return Layout(self.ids.to(device), self.positions.to(device), predicting, self.targets.to(device), sharing)

    def for_attention(self) -> dict[str, Any]:
        """Arguments of the model's forward: plain causal attention, or that of shared prompts, which needs no mask.

        transformers hands a mask of four dimensions on as it is, and would make one of T x T without.
        """
        if self.sharing is None:
            return {"attention_mask": None}
        none = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=self.ids.device)
        return {"attention_mask": none, "sharing": self.sharing}


def lay_out(rollouts: Rollouts, packs: Sequence[Sequence[int]], *, flat: bool = False, sharing: bool = False) -> Layout:
    """A prompt's completions one after the other: each pack a row, or flat, all in one row, as sharing needs it.

    Without sharing a pack is one completion.
    """
    flat = flat or sharing
    prompts = [rollouts.prompts[pack[0] // rollouts.num_generations].token_ids for pack in packs]
    lengths = [rollouts.lengths[list(pack)].tolist() for pack in packs]
    sizes = [len(prompt) + sum(each) for prompt, each in zip(prompts, lengths, strict=True)]
    shape = (1, sum(sizes)) if flat else (len(packs), max(sizes))
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    places, first = [], 0
    for number, (pack, prompt, each, size) in enumerate(zip(packs, prompts, lengths, sizes, strict=True)):
        row, start = (0, first) if flat else (number, 0)
        begin = start + len(prompt)
        ids[row, start:begin], positions[row, start:begin] = torch.tensor(prompt), torch.arange(len(prompt))
        last = begin - 1  # of the prompt
        for index, length in zip(pack, each, strict=True):
            ids[row, begin : begin + length] = rollouts.completion_ids[index, :length]
            positions[row, begin : begin + length] = torch.arange(len(prompt), len(prompt) + length)
            before = torch.arange(begin - 1, begin + length - 1)
            before[0] = last
            places.append((torch.full((length,), row), before))
            begin += length
        first += size
    targets = torch.cat([rollouts.completion_ids[row, : rollouts.lengths[row]] for pack in packs for row in pack])
    predicting = tuple(torch.cat(each) for each in zip(*places, strict=True))
    shared = Sharing.of([len(prompt) for prompt in prompts], lengths) if sharing else None
    return Layout(ids, positions, predicting, targets, shared)


def is_flat(model: PreTrainedModel) -> bool:
    """Whether sequences stand in one row without padding: flash attention tells them apart by their positions."""
    return "flash" in model.config._attn_implementation


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether completions of a question can share the pass over their prompt."""
    return model.config._attn_implementation == SHARED_PROMPTS


def microbatches(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int
) -> Iterator[list[list[int]]]:
    """Split completions into micro-batches of packs; the longest come first.

    Each has at most max_tokens: completions with their prompts, all as long as the longest of the micro-batch, but
    where flash attention needs no padding. What prompts that are shared save comes off that.

    Raises:
        ConfigError: one completion with its prompt is longer than max_tokens.
    """
    packs = sorted(pack_completions(model, rollouts, rows, max_tokens), key=lambda pack: (-pack[0], pack[1]))
    if packs and packs[0][0] > max_tokens:
        raise ConfigError("trainer.max_tokens_per_microbatch", max_tokens, f"at least {packs[0][0]}")
    batch, tokens, flat, longest = [], 0, is_flat(model), 0
    for size, pack in packs:
        if batch and tokens + len(pack) * (size if flat else longest) > max_tokens:
            yield batch
            batch, tokens = [], 0
        if not batch:
            longest = size
        batch.append(pack)
        tokens += len(pack) * (size if flat else longest)
    if batch:
        yield batch


def pack_completions(
    model: PreTrainedModel, rollouts: Rollouts, rows: Sequence[int], max_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """A question's completions, the longest first, as many together as may share; and the tokens of the longest."""
    shares, lengths, by_question = shares_prompts(model), rollouts.lengths.tolist(), {}
    for row in rows:
        by_question.setdefault(row // rollouts.num_generations, []).append(row)
    for question, members in by_question.items():
        prompt = len(rollouts.prompts[question].token_ids)
        members = sorted(members, key=lambda row: (-lengths[row], row))
        while members:
            longest = prompt + lengths[members[0]]
            count = max(1, max_tokens // longest) if shares else 1
            yield longest, members[:count]
            members = members[count:]


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
