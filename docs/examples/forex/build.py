"""Training rows from the European Central Bank's daily reference rates: reading a short run of figures correctly.

    python docs/examples/forex/build.py --sft 15300 --dpo 2550 --eval 400 --out docs/examples/forex/data

Every row shows five consecutive rates of one currency and asks where the euro went. The answer is computed from the
figures shown, so it is right by construction; a rejected answer of a preference pair has the direction wrong. Rows for
evaluation are later in time than every row for training. The same arguments give the same bytes.

It needs the package `currencyconverter`, which brings the rates along. It teaches arithmetic on rates, not forecasting.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from currency_converter import CurrencyConverter, RateNotFoundError

# Quoted against the euro since its first day; the Danish krone is left out because it is tied to it.
CURRENCIES = ("USD", "JPY", "GBP", "CHF", "SEK", "NOK", "AUD", "CAD", "NZD", "PLN", "CZK", "HUF", "SGD", "ZAR", "KRW")
FIRST_DAY = date(1999, 1, 4)
EVAL_FROM = date(2025, 1, 1)  # training looks at nothing from this day on
LAST_DAY = date(2025, 12, 31)  # fixed, so that a newer release of the rates gives the same rows
FIGURES = 5  # rates in one row
CENT = Decimal("0.01")

QUESTIONS = (
    "Did the euro rise or fall over these days, and by how much?",
    "Which way did the euro move, and how far?",
    "Is the euro stronger or weaker at the end, and by what share?",
)
ROSE, FELL = "rose", "fell"

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Consecutive reference rates: units of `currency` for one euro, oldest first."""

    currency: str
    days: tuple[date, ...]
    rates: tuple[Decimal, ...]

    @property
    def percent(self) -> Decimal:
        """Change from the first to the last rate, rounded to a hundredth of a percent."""
        return ((self.rates[-1] / self.rates[0] - 1) * 100).quantize(CENT)

    @property
    def verb(self) -> str:
        return ROSE if self.percent > 0 else FELL

    def reversed(self) -> Run:
        """What one reads who takes the last figure for the first."""
        return Run(self.currency, self.days, self.rates[::-1])


def runs(rates: CurrencyConverter, currency: str) -> list[Run]:
    """Every run of this currency, by first day. Without a visible change there is no direction to ask for."""
    quoted: list[tuple[date, Decimal]] = []
    for n in range((LAST_DAY - FIRST_DAY).days + 1):
        day = FIRST_DAY + timedelta(days=n)
        try:
            quoted.append((day, Decimal(str(rates.convert(1, "EUR", currency, day)))))
        except RateNotFoundError:
            continue  # weekends and holidays
    windows = (quoted[i : i + FIGURES] for i in range(len(quoted) - FIGURES + 1))
    found = [Run(currency, *zip(*window, strict=True)) for window in windows]
    return [run for run in found if run.percent != 0]


def question(run: Run, wording: str) -> str:
    figures = " ".join(str(rate) for rate in run.rates)
    return f"ECB reference rates, {run.currency} for 1 EUR, from {run.days[0]}:\n{figures}\n{wording}"


def answer(run: Run, verb: str, think: bool) -> str:
    """The reasoning, then the direction. With `think` the reasoning stands in a block of its own, as R1 models do."""
    change = run.rates[-1] - run.rates[0]
    reasoning = f"From {run.rates[0]} to {run.rates[-1]} the change is {change:+}, which is {run.percent:+} %."
    conclusion = f"The euro {verb} by {abs(run.percent)} %."
    return f"<think>\n{reasoning}\n</think>\n\n{conclusion}" if think else f"{reasoning} {conclusion}"


def sft_row(run: Run, wording: str, think: bool) -> Row:
    return {
        "date": str(run.days[-1]),  # of the newest rate: what is evaluated must be later than what is trained
        "prompt": [{"role": "user", "content": question(run, wording)}],
        "completion": [{"role": "assistant", "content": answer(run, run.verb, think)}],
    }


def dpo_row(run: Run, wording: str, think: bool, misread: bool) -> Row:
    """Rejected is a conclusion against its own reasoning, or sound reasoning from the wrong end of the figures."""
    wrong = run.reversed() if misread else run
    opposite = FELL if run.verb == ROSE else ROSE
    return {
        "date": str(run.days[-1]),
        "prompt": [{"role": "user", "content": question(run, wording)}],
        "chosen": [{"role": "assistant", "content": answer(run, run.verb, think)}],
        "rejected": [{"role": "assistant", "content": answer(wrong, opposite, think)}],
    }


def build(sft: int, dpo: int, evaluation: int, *, seed: int = 42, think: bool = False) -> dict[str, list[Row]]:
    """Exactly so many rows by file name. Raises SystemExit when the rates do not give as many different ones."""
    rates = CurrencyConverter()
    everything = [run for currency in CURRENCIES for run in runs(rates, currency)]
    early = [run for run in everything if run.days[-1] < EVAL_FROM]
    late = [run for run in everything if run.days[0] >= EVAL_FROM]
    for wanted, found, name in ((sft + dpo, early, "training"), (evaluation, late, "evaluation")):
        if wanted > len(found):
            raise SystemExit(f"{wanted} {name} rows were asked for; the rates give {len(found)} different ones")
    choice = random.Random(seed)  # noqa: S311 - repeatable is what is wanted
    training, held_out = choice.sample(early, sft + dpo), choice.sample(late, evaluation)
    return {
        "sft.jsonl": [sft_row(run, choice.choice(QUESTIONS), think) for run in training[:sft]],
        "dpo.jsonl": [
            dpo_row(run, choice.choice(QUESTIONS), think, misread=i % 2 == 0) for i, run in enumerate(training[sft:])
        ],
        "eval.jsonl": [sft_row(run, choice.choice(QUESTIONS), think) for run in held_out],
    }


def write(folder: Path, files: dict[str, list[Row]]) -> Iterable[str]:
    """Write each file whole; yields a line about each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        yield f"{folder / name}: {len(rows)} rows"


def main() -> None:
    parser = argparse.ArgumentParser(description="Training rows from the ECB's daily reference rates.")
    parser.add_argument("--sft", type=int, default=15_300)
    parser.add_argument("--dpo", type=int, default=2_550)
    parser.add_argument("--eval", type=int, default=400)
    parser.add_argument("--think", action="store_true", help="reasoning in <think> blocks, for R1-style models")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for line in write(args.out, build(args.sft, args.dpo, args.eval, seed=args.seed, think=args.think)):
        print(line)


if __name__ == "__main__":
    main()
