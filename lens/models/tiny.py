"""Makes the embedded model: a small Llama with a word-level tokenizer, warm-started on a world's imperfect teacher.

The result is a plain Hugging Face folder, so every engine can load it like any other model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from filelock import FileLock
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lens.problems.worlds import find_world
from lens.progress import progress_bar

log = logging.getLogger(__name__)

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
SEPARATOR = "<sep>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} " + SEPARATOR + "{% endif %}"
)
IGNORED = -100
FIRST_WORLD = "arithmetic"


@dataclass(frozen=True)
class TinyRecipe:
    """Everything that determines the tiny model: its size and its warm start. configs/model/tiny.yaml explains each.

    Raises:
        ConfigError: there is no such world.
    """

    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 3
    num_heads: int = 4
    max_position_embeddings: int = 256
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 3e-3
    seed: int = 0
    world: str = field(default=FIRST_WORLD, repr=False)

    def __post_init__(self):
        find_world(self.world, "model.recipe.world")

    def key(self) -> str:
        """Return a short hash of the recipe and of everything that the teacher teaches. It names the model's folder.

        The first world is not named in it, so that models from when there was no other keep their folders.
        """
        named = () if self.world == FIRST_WORLD else (self.world,)
        teaching = find_world(self.world, "model.recipe.world").TEACHING
        return hashlib.sha256(repr((self, *named, *teaching)).encode()).hexdigest()[:10]


def make_tokenizer(world: str = FIRST_WORLD) -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer over the vocabulary of a world.

    Its chat template puts the separator before the answer.
    """
    words = [*SPECIAL_TOKENS.values(), SEPARATOR, *find_world(world, "model.recipe.world").vocabulary()]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL_TOKENS,
        additional_special_tokens=[SEPARATOR],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(recipe: TinyRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make an untrained Llama of the recipe's size. vLLM's CPU attention is fastest with the default's heads of 32."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def make_lessons(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, count: int, world: str = FIRST_WORLD
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of the lessons that the teacher of a world gives.

    Returns:
        Token ids and labels, int64 [count, longest]. Labels are IGNORED on prompts and padding.
    """
    ids, labels, teach = [], [], find_world(world, "model.recipe.world").teach
    for _ in range(count):
        problem, solution = teach(rng)
        prompt = tokenizer.convert_tokens_to_ids([tokenizer.bos_token, *problem.split(), SEPARATOR])
        answer = tokenizer.convert_tokens_to_ids([*solution.split(), tokenizer.eos_token])
        ids.append(torch.tensor(prompt + answer))
        labels.append(torch.tensor([IGNORED] * len(prompt) + answer))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, True, tokenizer.pad_token_id), pad(labels, True, IGNORED)


def warm_start(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: TinyRecipe) -> float | None:
    """Train a model on the imperfect teacher's lessons, with AdamW and a warm-up followed by a cosine.

    Returns:
        The last loss, in nats a token; None if the recipe has no steps.
    """
    rng = random.Random(f"lessons {recipe.seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = max(1, recipe.steps // 20)

    def schedule(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    loss = None
    bar = progress_bar(recipe.steps, desc="warm start of the tiny model")
    for _ in range(recipe.steps):
        ids, labels = make_lessons(tokenizer, rng, recipe.batch_size, recipe.world)
        hidden = model.model(ids[:, :-1]).last_hidden_state  # [B, T-1, H]; right padding needs no mask
        taught = labels[:, 1:] != IGNORED  # [B, T-1]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[taught]), labels[:, 1:][taught])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    return None if loss is None else loss.item()


def make_tiny(recipe: TinyRecipe, folder: Path) -> Path:
    """Make the recipe's model in a folder below ``folder`` unless it is there already, and return that folder.

    Several processes may call this at once: one makes the model, the others wait for it.
    """
    target = folder / f"tiny-{recipe.key()}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        tokenizer = make_tokenizer(recipe.world)
        model = make_model(recipe, tokenizer)
        size = model.num_parameters()
        log.info("Making the tiny model of the world %s (%d parameters) in %s", recipe.world, size, target)
        loss = warm_start(model, tokenizer, recipe)
        unfinished = target.with_name(f"{target.name}.unfinished")
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / "recipe.json").write_text(json.dumps({**asdict(recipe), "final_loss": loss}, indent=2) + "\n")
        unfinished.rename(target)
    return target
