"""A problem becomes token ids: templates, special tokens, the limit, and the configs of the models."""

from __future__ import annotations

import logging
from datetime import datetime

import pytest
from datasets import Dataset
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from lens.commands.assembly import make_evaluator
from lens.commands.training_set import TrainingSet
from lens.errors import ConfigError
from lens.files import CONFIGS
from lens.problems.problem import FEATURES
from lens.problems.prompts import Prompt, PromptFormat, encode_problems, hash_prompts

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


WRITES_DAY = "<user> {% if strftime_now('%Y-%m-%d %B') == '2024-07-26 July' %}one{% else %}two{% endif %}"
WRITES_DATE_STRING = (  # as Llama 3.1 and 3.2
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if date_string == '26 Jul 2024' %}one{% else %}two{% endif %}"
)
OWN_DATE = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}one"


def set_clock(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Let chat templates take a day for today, as transformers shows it to them."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize("template", [WRITES_DAY, WRITES_DATE_STRING])
def test_a_template_that_prints_the_day_prints_that_of_the_config(monkeypatch, template):
    tokenizer, problems = make_tokenizer("$A", template), problems_of("one", "two")
    message = [{"role": "user", "content": "one"}]
    found, today = {}, {}
    for day in ("2024-07-26", "2026-11-26"):
        set_clock(monkeypatch, day)
        today[day] = tokenizer.apply_chat_template(message, tokenize=False)
        for pinned in ("2024-07-26", "2025-01-01"):
            found[day, pinned] = encode_problems(problems, tokenizer, PromptFormat(date=pinned))[1]
    assert today["2024-07-26"] != today["2026-11-26"]
    assert found["2024-07-26", "2024-07-26"] == found["2026-11-26", "2024-07-26"]
    assert found["2024-07-26", "2025-01-01"] == found["2026-11-26", "2025-01-01"]
    assert [words(found["2026-11-26", pinned][0].token_ids).split()[-1] for pinned in ("2024-07-26", "2025-01-01")] == [
        "one",
        "two",
    ]


def test_training_and_evaluation_have_the_day_of_the_config(monkeypatch):
    set_clock(monkeypatch, "2026-11-26")
    overrides = ["experiment=none", "model=hf", "model.name_or_path=x", "model.prompt.instruction=null"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=[*overrides, "trainer.rollouts.num_prompts_per_rollout=1"])
    assert config.model.prompt.date == "2024-07-26"
    tokenizer, problems = make_tokenizer("$A", WRITES_DAY), problems_of("three")
    (evaluation_set,) = make_evaluator(config, {"a": problems}, tokenizer).sets
    for prompts in (evaluation_set.prompts, TrainingSet.encode(config, problems, tokenizer, {}).prompts):
        assert words(prompts[0].token_ids) == "<user> one"


@pytest.mark.parametrize("template", [WRITES_DAY, WRITES_DATE_STRING])
def test_a_template_that_prints_the_day_is_refused_where_the_config_has_none(template):
    with pytest.raises(ConfigError) as error:
        PromptFormat().encode("one", make_tokenizer("$A", template))
    assert str(error.value) == (
        "model.prompt.date=None: must be a date such as 2024-07-26: the chat template prints one"
    )


@pytest.mark.parametrize("template", [WRITES_BOS, OWN_DATE])
def test_a_template_that_asks_for_no_day_needs_none(template):
    tokenizer = make_tokenizer("$A", template)
    assert PromptFormat().encode("one", tokenizer) == PromptFormat(date="2024-07-26").encode("one", tokenizer)


def test_hashes_differ_where_id_prompt_or_answer_do():
    problems = problems_of("one", "two")
    prompts = [Prompt("id one", (1, 2)), Prompt("id two", (1, 23))]
    hashes = hash_prompts(problems, prompts)
    assert list(hashes) == ["id one", "id two"]
    assert hash_prompts(problems, prompts) == hashes
    changed = [
        hash_prompts(problems, [prompts[0], Prompt("id two", (12, 3))])["id two"],
        hash_prompts(problems, [prompts[0], Prompt("id 2", (1, 23))])["id 2"],
        hash_prompts(problems.map(lambda row: {"answer": "2"}), prompts)["id two"],
    ]
    assert len({*hashes.values(), *changed}) == 5
    assert all(-(2**63) <= value < 2**63 for value in hashes.values())


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
