"""Turns problems into token ids. Nothing after this reads or writes the text of a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lens.errors import ConfigError
from lens.problems.worlds import list_worlds

QUESTION = "{question}"  # a plain layout has the question in this place


@dataclass(frozen=True)
class Prompt:
    """The token ids of a problem as the model reads it."""

    problem_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptFormat:
    """How a problem becomes a prompt.

    Attributes:
        template: "chat" uses the tokenizer's chat template (instruct models), "plain" the ``layout`` (base models).
        instruction: text after the problem, on a line of its own. Both together are the question. None: no text.
        max_length: most tokens that a prompt may have.
        layout: the text of a plain prompt; ``{question}`` in it is replaced.
        date: the day that a chat template takes for today, such as "2024-07-26". None: for templates that print none.

    Raises:
        ConfigError: the template is unknown, or the layout has no ``{question}``.
    """

    template: Literal["chat", "plain"] = "chat"
    instruction: str | None = None
    max_length: int = 1024
    layout: str = "Question:\n{question}\nAnswer:\n"
    date: str | None = None

    def __post_init__(self):
        if self.template not in ("chat", "plain"):
            raise ConfigError("model.prompt.template", self.template, "must be chat or plain")
        if QUESTION not in str(self.layout):
            raise ConfigError("model.prompt.layout", self.layout, f"must be a text with {QUESTION} in it")

    def encode(self, problem: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Return the token ids of one problem, with at most one beginning-of-sequence token and no end token.

        A chat template writes its special tokens itself, so the tokenizer adds none. To a plain text the tokenizer adds
        what it adds to any text. An end-of-sequence token is removed, since the model shall continue the text.

        Raises:
            ConfigError: the template is "chat", and the tokenizer has no chat template, or one that prints a date where
                ``date`` is None.
        """
        question = problem if self.instruction is None else f"{problem}\n{self.instruction}"
        if self.template == "plain":
            ids = tokenizer(self.layout.replace(QUESTION, question)).input_ids
            return tuple(ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids)
        if tokenizer.chat_template is None:
            raise ConfigError("model.prompt.template", "chat", "the tokenizer has no chat template: use plain")
        message = [{"role": "user", "content": question}]
        options = {"tokenize": False, "add_generation_prompt": True}
        rendered = tokenizer.apply_chat_template(message, **options, **make_date_variables(self.date))
        return tuple(tokenizer(rendered, add_special_tokens=False).input_ids)


def make_date_variables(today: str | None) -> dict[str, Any]:
    """Return what a chat template asks for a date, in place of the clock.

    Most templates call the function ``strftime_now``. Llama's print the variable ``date_string`` where there is one.
    """
    if today is None:
        return {"strftime_now": refuse_to_tell_the_date}
    day = date.fromisoformat(today)
    return {"strftime_now": day.strftime, "date_string": day.strftime("%d %b %Y")}


def refuse_to_tell_the_date(pattern: str) -> str:
    """Stand in for ``strftime_now`` where the config has no date.

    Raises:
        ConfigError: always.
    """
    raise ConfigError("model.prompt.date", None, "must be a date such as 2024-07-26: the chat template prints one")


def encode_problems(
    problems: Dataset, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat
) -> tuple[Dataset, list[Prompt], int]:
    """Encode problems, and leave out those whose prompt is too long.

    Returns:
        The remaining problems, their prompts in the same order, and the number of problems that were too long.

    Raises:
        ConfigError: no problem is left, or a world's problem has words that the tokenizer does not know.
    """
    encoded = [prompt_format.encode(problem, tokenizer) for problem in problems["problem"]]
    for source, name, ids in zip(problems["source"], problems["id"], encoded, strict=True):
        if tokenizer.unk_token_id in ids and source in list_worlds():
            valid = f"must be a model of the world {source}: its tokenizer does not know all words of {name}"
            raise ConfigError("model.name_or_path", tokenizer.name_or_path, valid)
    fitting = [index for index, ids in enumerate(encoded) if len(ids) <= prompt_format.max_length]
    if not fitting:
        shortest = min(map(len, encoded), default=0)
        valid = f"must be at least {shortest}, the tokens of the shortest prompt"
        raise ConfigError("model.prompt.max_length", prompt_format.max_length, valid)
    fits = problems.select(fitting) if len(fitting) < len(encoded) else problems
    prompts = [Prompt(name, encoded[index]) for name, index in zip(fits["id"], fitting, strict=True)]
    return fits, prompts, len(encoded) - len(fitting)


def hash_prompts(problems: Dataset, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Return a hash of 64 bits for each problem, by id: of its id, the token ids of its prompt, and its gold answer.

    The prompts are those of the problems, in the same order.
    """
    hashes = {}
    for prompt, gold in zip(prompts, problems["answer"], strict=True):
        asked = repr((prompt.problem_id, prompt.token_ids, gold))
        digest = hashlib.blake2b(asked.encode(), digest_size=8).digest()
        hashes[prompt.problem_id] = int.from_bytes(digest, signed=True)
    return hashes
