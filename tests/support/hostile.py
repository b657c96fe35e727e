"""Hostile answers to grade: generated from a number, so that the same number always gives the same answer.

Real gold answers and completions come from the folder that LENS_SHARED names; without it, from the lists below.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

from lens.grading.judge import last_boxed

GOLDS = [
    *("7", "-3", "0", "1024", "10,080", "0.35", "-2.5", r"12\%", r"\frac{3}{8}", r"-\frac{11}{4}", r"2\frac{1}{3}"),
    *(r"\sqrt{7}", r"3\sqrt{5}", r"2\pi", r"\frac{\sqrt{3}}{2}", "x^2+3x-4", r"y=2x+1", "x=4", "(2,-5)", "[0,3)"),
    *(r"(-\infty,2]\cup[5,\infty)", r"\{1,2,6\}", "1,4,9", r"\begin{pmatrix}1\\-2\end{pmatrix}", r"\text{Tuesday}"),
    *(
        r"\text{(B)}",
        r"60^\circ",
        "31_7",
        "2+3i",
        r"\frac{a+b}{2}",
        "2^{10}",
        "5!",
        r"\log_2 5",
        r"8\text{ cm}",
        "9:30",
    ),
]
COMPLETIONS = [
    (r"We factor: $x^2-5x+6=(x-2)(x-3)$, so the roots are 2 and 3. The sum is $\boxed{5}$.", "5"),
    (r"The slope is $\frac{4-1}{7-3}=\frac{3}{4}$. So the answer is $\boxed{\frac{3}{4}}$.", r"\frac{3}{4}"),
    (r"By Pythagoras $c^2=4+16=20$, and $c=\sqrt{20}=2\sqrt{5}$. Thus $\boxed{2\sqrt{5}}$.", r"2\sqrt{5}"),
    (r"Of 40 pupils 12 sing, which is $\frac{12}{40}=30\%$. The answer: $\boxed{30\%}$", r"30\%"),
    (r"Both hold for $1\le x<4$. Therefore the set is $\boxed{[1,4)}$. I hope it is correct.", "[1,4)"),
    (r"So $(x,y)=\boxed{\left(3,-\frac12\right)}$.", r"\left(3,-\frac{1}{2}\right)"),
]
FUNCTIONS = ["sin", "cos", "tan", "log", "ln", "exp", "arcsin", "max", "gcd"]
OPERATORS = ["+", "-", r"\cdot ", r"\times ", "/", r"\div ", "=", "<", r"\le ", r"\pm ", r"\cup ", ",", r"\bmod ", ""]
ATOMS = ["x", "y", "n", "e", "i", r"\pi", r"\infty", r"\emptyset", r"\mathbb{R}", r"\text{or}", "%", r"\%", ".", "A"]
WRAPPERS = [
    *(("(", ")"), ("[", "]"), ("{", "}"), (r"\left(", r"\right)"), (r"\{", r"\}"), ("|", "|"), (r"\sqrt{", "}")),
    *((r"\frac{1}{", "}"), (r"\frac{", "}{2}"), ("2^{", "}"), ("x_{", "}"), (r"\text{", "}"), (r"\boxed{", "}")),
    *((r"\sin(", ")"), ("-", ""), ("1+", ""), (r"\overline{", "}"), (r"\lfloor ", r"\rfloor "), ("(1,", ")")),
]
SIGNS = "０１２３٣५²³½⅓∞√π−–×÷≤≥≠≈∈∪∅ℝ𝟙𝟝𝑥′″°％，．（）｛｝\u200b\u202e\u0301\0\ud800\ufeff\U0010ffff😀 ¼Σ∫∑"


def hostile_answer(number: int) -> tuple[str, str]:
    """A completion and a gold answer; the number is their seed."""
    rng = random.Random(number)
    (family,) = rng.choices([mutation, grammar, nesting, unicode, huge_number], weights=[10, 4, 3, 2, 1])
    if family is mutation:
        return mutation(rng)
    text = family(rng)
    return (rf"So the answer is $\boxed{{{text}}}$." if rng.random() < 0.95 else text), rng.choice(real_golds())


def grammar(rng: random.Random, depth: int | None = None) -> str:
    """A formula of LaTeX, mostly well formed."""
    depth = rng.randrange(1, 6) if depth is None else depth
    if depth == 0:
        return rng.choice([*ATOMS, *(str(rng.randrange(10 ** rng.randrange(1, 4))) for _ in ATOMS)])

    def part() -> str:
        return grammar(rng, rng.randrange(depth))

    forms: list[Callable[[], str]] = [
        lambda: f"{part()}{rng.choice(OPERATORS)}{part()}",
        lambda: f"{part()}{rng.choice(OPERATORS)}{part()}",
        lambda: rf"\frac{{{part()}}}{{{part()}}}",
        lambda: rf"\sqrt[{part()}]{{{part()}}}",
        lambda: f"{{{part()}}}^{{{part()}}}",
        lambda: f"{part()}_{{{part()}}}",
        lambda: f"({part()})!",
        lambda: rf"\{rng.choice(FUNCTIONS)}{{{part()}}}",
        lambda: rf"\binom{{{part()}}}{{{part()}}}",
        lambda: rf"\sum_{{n={part()}}}^{{{part()}}} {part()}",
        lambda: rf"\prod_{{k=1}}^{{{part()}}} {part()}",
        lambda: rf"\int_{{{part()}}}^{{{part()}}} {part()} dx",
        lambda: rf"\lim_{{x \to {part()}}} {part()}",
        lambda: rf"\begin{{pmatrix}} {part()} & {part()} \\ {part()} & {part()} \end{{pmatrix}}",
        lambda: rf"\begin{{cases}} {part()} \\ {part()} \end{{cases}}",
        lambda: part().join(rng.choice(WRAPPERS)),
    ]
    return rng.choice(forms)()


def nesting(rng: random.Random) -> str:
    """A number within many layers of one kind or of several, which may not be closed."""
    kinds = rng.sample(WRAPPERS, rng.choice([1, 1, 2, 4]))
    layers = [rng.choice(kinds) for _ in range(rng.choice([5, 20, 50, 100, 300]))]
    closed = layers if rng.random() < 0.8 else layers[rng.randrange(len(layers)) :]
    return "".join(start for start, _ in layers) + "5" + "".join(end for _, end in reversed(closed))


def huge_number(rng: random.Random) -> str:
    """A number that is long, or short to write and long to compute."""
    digit, size = rng.randrange(2, 10), rng.randrange(2, 30)
    many = "".join(rng.choices("0123456789", k=rng.choice([20, 400, 990])))
    power = "".join(f"{rng.randrange(2, 12)}^{{" for _ in range(rng.randrange(2, 6)))
    return rng.choice(
        [
            *(many, f"0.{many}", f"-{many}.{many}", rf"\frac{{{many}}}{{{digit}}}", f"{digit}e{many[:5]}"),
            power + str(digit) + "}" * power.count("{"),
            *(f"{digit}^{{{many[:9]}}}", f"({digit}^{{{size}}})!", str(digit) + "!" * size, f"10^{{-{many[:7]}}}"),
            *(rf"\binom{{10^{{{size}}}}}{{{many[:6]}}}", rf"\sum_{{n=1}}^{{10^{{{size}}}}} n^{{{digit}}}"),
            *(rf"\sqrt[{many[:4]}]{{{digit}}}", f"(x+y+{digit})^{{{size * 20}}}", f"{many[:20]}_{{{digit}}}"),
            rf"\int_0^{{{digit}}} x^{{x^{{{digit}}}}} dx",
        ]
    )


def unicode(rng: random.Random) -> str:
    """Signs of many scripts, some of which no encoding holds, between parts of a formula."""
    parts = [rng.choice(SIGNS) if rng.random() < 0.6 else grammar(rng, 1) for _ in range(rng.randrange(1, 40))]
    return "".join(parts) + "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(3)))


def mutation(rng: random.Random) -> tuple[str, str]:
    """A real completion, or a real gold answer in a box, changed in a few places; and the gold answer."""
    completion, gold = rng.choice(real_completions())
    if rng.random() < 0.6:
        gold = rng.choice(real_golds())
        completion = rf"Therefore $\boxed{{{gold}}}$."
    box = completion.rfind(r"\boxed") if rng.random() < 0.9 else 0
    head, tail = completion[:box], completion[box:]
    for _ in range(rng.choice([0, 1, 1, 2, 5, 20])):
        start = rng.randrange(len(tail) + 1)
        end = min(len(tail), start + rng.randrange(1, 6))
        piece = rng.choice(
            ["", tail[start:end] * 2, grammar(rng, 1), rng.choice("{}()[]\\^_&$%#~.,="), rng.choice(SIGNS)]
        )
        tail = tail[:start] + piece + tail[end:]
    return head + tail, gold


@cache
def real_golds() -> list[str]:
    if not (file := shared_file("math_train.jsonl")):
        return GOLDS
    return sorted({gold for row in read_rows(file) if (gold := last_boxed(rf"\boxed{{{row['answer']}}}"))})


@cache
def real_completions() -> list[tuple[str, str]]:
    if not (file := shared_file("model_completions.jsonl")):
        return COMPLETIONS
    return [(row["completion"], row["gold"]) for row in read_rows(file) if last_boxed(row["completion"])]


def shared_file(name: str) -> Path | None:
    return Path(os.environ["LENS_SHARED"], "data", name) if "LENS_SHARED" in os.environ else None


def read_rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
