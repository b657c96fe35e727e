"""A problem becomes token ids, once: nothing after this reads or writes prompt text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lens.errors import ConfigError

QUESTION = "{question}"  # what a plain layout puts the question in place of


@dataclass(frozen=True)
class Prompt:
    """A problem as the model reads it."""

    problem_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptFormat:
    """How a problem is put to the model.

    Attributes:
        template: "chat" uses the tokenizer's chat template (instruct models), "plain" the ``layout`` (base models).
        instruction: text after the problem, on a line of its own, and with it the question; None for none.
        max_length: the longest prompt in tokens.
        layout: a plain prompt as text, with ``{question}`` in it.

    Raises:
        ConfigError: an unknown template, or a layout without a question.
    """

    template: Literal["chat", "plain"] = "chat"
    instruction: str | None = None
    max_length: int = 1024
    layout: str = "Question:\n{question}\nAnswer:\n"

    def __post_init__(self):
        if self.template not in ("chat", "plain"):
            raise ConfigError("model.prompt.template", self.template, "chat or plain")
        if QUESTION not in str(self.layout):
            raise ConfigError("model.prompt.layout", self.layout, f"a text with {QUESTION} in it")

    def encode(self, problem: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The token ids of one problem, with no more than one beginning-of-sequence token, and open at the end.

        A chat template writes its special tokens itself, so the tokenizer adds none. To a plain text the tokenizer adds
        what it adds to any text, but for an end-of-sequence token: the model is to go on.

        Raises:
            ConfigError: a chat template that the tokenizer lacks.
        """
        question = problem if self.instruction is None else f"{problem}\n{self.instruction}"
        if self.template == "plain":
            ids = tokenizer(self.layout.replace(QUESTION, question)).input_ids
            return tuple(ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids)
        if tokenizer.chat_template is None:
            raise ConfigError("model.prompt.template", "chat", "the tokenizer has no chat template: use plain")
        message = [{"role": "user", "content": question}]
        rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return tuple(tokenizer(rendered, add_special_tokens=False).input_ids)


def encode_problems(
    problems: Dataset, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat
) -> tuple[Dataset, list[Prompt], int]:
    """The problems whose prompts are within the limit, their prompts in the same order, and how many were too long.

    Raises:
        ConfigError: no problem is left.
    """
    encoded = [prompt_format.encode(problem, tokenizer) for problem in problems["problem"]]
    fitting = [index for index, ids in enumerate(encoded) if len(ids) <= prompt_format.max_length]
    if not fitting:
        shortest = min(map(len, encoded), default=0)
        valid = f"at least {shortest}, the tokens of the shortest prompt"
        raise ConfigError("model.prompt.max_length", prompt_format.max_length, valid)
    fits = problems.select(fitting) if len(fitting) < len(encoded) else problems
    prompts = [Prompt(name, encoded[index]) for name, index in zip(fits["id"], fitting, strict=True)]
    return fits, prompts, len(encoded) - len(fitting)
