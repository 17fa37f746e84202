"""How many pairs the reward `math` judges a second, in one worker.

    python -m tests.bench.rewards_math [--repeat 3]

Numbers: GSM8K's forms of answer, half of them wrong, which no process is asked for. Formulas: answers that only sympy
can compare, each pair once in a round. Prints one JSON line; medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

FORMULAS = (
    ("x^2-{n}", "(x-\\sqrt{{{n}}})(x+\\sqrt{{{n}}})"),
    ("\\sqrt{{{n}}}+1", "\\frac{{\\sqrt{{{n}}}-1}}{{2}}"),
    ("\\frac{{x+{n}}}{{x}}", "1+\\frac{{{n}}}{{x}}"),
    ("{n}\\pi", "\\frac{{{n}}}{{2}}\\pi"),
)


def pairs_per_second(number_pairs: int = 20_000, formula_pairs: int = 200, repeat: int = 3) -> dict[str, Any]:
    """Pairs a second: of numbers, and of formulas; and seconds that the first formula takes, which loads sympy."""
    from rewards.math import math_reward
    from rewards.math.symbolic import shared

    begin = time.perf_counter()
    shared().start()
    load_s = time.perf_counter() - begin
    forms = ("So 3 + 4 = 7 in all.\n#### {}", "The answer is {}.", "hence $x = {}$", "\\boxed{{{}}}")
    answers = [forms[i % 4].format(f"{i:,}" if i % 3 else i) for i in range(number_pairs)]
    golds = [str(i if i % 2 else i + 1) for i in range(number_pairs)]
    formulas = [
        (gold.format(n=n), answer.format(n=n)) for n in range(2, formula_pairs // 4 + 2) for gold, answer in FORMULAS
    ]
    rates: dict[str, list[float]] = {"numbers": [], "formulas": []}
    for _ in range(repeat):
        for name, right, said in (
            ("numbers", golds, answers),
            ("formulas", [gold for gold, _ in formulas], [answer for _, answer in formulas]),
        ):
            begin = time.perf_counter()
            for place in range(0, len(right), 8):  # groups of eight
                math_reward(said[place : place + 8], answer=right[place : place + 8])
            rates[name].append(len(right) / (time.perf_counter() - begin))
    return {
        "number_pairs_per_s": round(statistics.median(rates["numbers"])),
        "formula_pairs_per_s": round(statistics.median(rates["formulas"]), 1),
        "load_s": round(load_s, 2),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rewards_math", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    print(json.dumps(pairs_per_second(repeat=parser.parse_args().repeat)))


if __name__ == "__main__":
    main()
