"""A problem becomes token ids: templates, special tokens, the limit, and the configs of the models."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lens.commands.assembly import make_evaluator
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.problems.problem import FEATURES
from lens.problems.prompts import Prompt, PromptFormat, encode_problems

WORDS = ["<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "Question:", "Answer:", "one", "two", "three", "please"]
WRITES_BOS = "{{ bos_token }} <user> {{ messages[0]['content'] }}{% if add_generation_prompt %} <assistant>{% endif %}"


def make_tokenizer(adds: str, chat_template: str | None = WRITES_BOS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that adds special tokens to a text ``$A``, as in "<bos> $A <eos>"."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("<bos>", 0), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single=adds, special_tokens=special)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **names)


def words(ids: tuple[int, ...]) -> str:
    return " ".join(WORDS[number] for number in ids)


@pytest.mark.parametrize("adds", ["$A", "<bos> $A", "<bos> $A <eos>"])
def test_a_chat_template_writes_its_special_tokens_itself_and_the_tokenizer_adds_none(adds):
    ids = PromptFormat("chat", instruction="please").encode("one two", make_tokenizer(adds))
    assert words(ids) == "<bos> <user> one two please <assistant>"


def test_a_chat_template_that_writes_no_bos_gets_none():
    tokenizer = make_tokenizer("<bos> $A", "<user> {{ messages[0]['content'] }} <assistant>")
    assert words(PromptFormat("chat").encode("one", tokenizer)) == "<user> one <assistant>"


@pytest.mark.parametrize(("adds", "first"), [("$A", ""), ("<bos> $A", "<bos> "), ("<bos> $A <eos>", "<bos> ")])
def test_a_plain_prompt_has_what_the_tokenizer_adds_but_for_an_end(adds, first):
    ids = PromptFormat("plain", instruction="please").encode("one two", make_tokenizer(adds, None))
    assert words(ids) == f"{first}Question: one two please Answer:"


def test_the_instruction_stands_on_a_line_of_its_own_after_the_problem():
    seen = []

    class Reader(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            seen.append(text)
            return super().__call__(text, **options)

    tokenizer = Reader(tokenizer_object=make_tokenizer("$A").backend_tokenizer, chat_template=WRITES_BOS, bos_token="B")
    instruction = r"Put it within \boxed{}."
    PromptFormat("plain", instruction).encode("What is {question}?", tokenizer)
    PromptFormat("plain", layout="{question}").encode("one ", tokenizer)
    PromptFormat("chat", instruction).encode("one", tokenizer)
    assert seen == [
        f"Question:\nWhat is {{question}}?\n{instruction}\nAnswer:\n",
        "one ",
        f"B <user> one\n{instruction} <assistant>",
    ]


def test_a_chat_template_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"model\.prompt\.template='chat': the tokenizer has no chat template"):
        PromptFormat("chat").encode("one", make_tokenizer("$A", None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "jinja"}, r"model\.prompt\.template='jinja': must be chat or plain"),
        (
            {"layout": "Question: {problem}"},
            r"model\.prompt\.layout='Question: \{problem\}': must be a text with \{question\}",
        ),
        ({"layout": None}, r"model\.prompt\.layout=None: must be a text with"),
    ],
)
def test_a_format_that_cannot_work_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PromptFormat(**options)


def problems_of(*texts: str) -> Dataset:
    rows = {"problem": texts, "answer": ["1"] * len(texts), "level": [1] * len(texts)}
    rows |= {"subject": [None] * len(texts), "id": [f"id {text}" for text in texts], "source": ["x"] * len(texts)}
    return Dataset.from_dict(rows, features=FEATURES)


def test_problems_over_the_limit_are_left_out_and_counted():
    problems = problems_of("one", "one two three", "two")
    kept, prompts, too_long = encode_problems(problems, make_tokenizer("$A"), PromptFormat(max_length=4))
    assert (kept["id"][:], too_long) == (["id one", "id two"], 1)
    assert prompts == [Prompt("id one", (0, 3, 7, 4)), Prompt("id two", (0, 3, 8, 4))]


def test_a_limit_that_leaves_nothing_is_refused_with_the_least_that_would():
    with pytest.raises(
        ConfigError, match=r"model\.prompt\.max_length=3: must be at least 4, the tokens of the shortest"
    ):
        encode_problems(problems_of("one", "one two"), make_tokenizer("$A"), PromptFormat(max_length=3))


def test_an_evaluation_set_remembers_how_many_of_its_problems_were_too_long(caplog):
    caplog.set_level(logging.WARNING)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["model.prompt.max_length=4"])
    evaluator = make_evaluator(config, {"short": problems_of("one", "one two")}, make_tokenizer("$A"))
    assert [(s.name, len(s.prompts), s.too_long) for s in evaluator.sets] == [("short", 1, 1)]
    assert "short: 1 problems over model.prompt.max_length are left out" in caplog.text


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("smollm2", "chat"),
        ("gemma3_270m", "plain"),
        ("llama3.1_8b", "chat"),
        ("qwen2.5_3b", "plain"),
        ("hf", "chat"),
    ],
)
def test_every_pretrained_model_is_asked_for_a_box(model, template):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        prompt = compose("train", overrides=[f"model={model}"]).model.prompt
    assert PromptFormat(**prompt).template == template
    assert prompt.instruction == r"Please reason step by step, and put your final answer within \boxed{}."
