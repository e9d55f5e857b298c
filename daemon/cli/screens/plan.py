"""`jobctl plan`: what a job file would do and cost."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.api.messages import ChoiceView, OfferView, Plan, WayView
from daemon.cli.terminal import Column, Look, cents, dollars, duration, size, table

OFFERS_SHOWN = 3


def screen(plan: Plan, look: Look, *, why: bool) -> str:
    """Steps, money and machines; `why` lists every rejected offer with its reason."""
    stages = ", ".join(
        f"{stage} {plan['rows'].get(stage, 0)} rows in {steps} steps" for stage, steps in plan["steps"].items()
    )
    lines = [
        look.paint(f"{plan['name']}   {plan['model']}", "bold"),
        f"Steps     {stages or 'none'}",
        f"Cost      {_cost(plan)}",
        f"Limits    {', '.join(f'{name} {value}' for name, value in plan['limits'].items()) or 'none'}",
        f"Home      {size(plan['download_bytes'])}; disk on the machine {plan['disk_gb']} GB",
        *(f"          {_way(way)}" for way in plan["deliver"]),
    ]
    lines += [look.paint(f"! {stage['warning']}", "warn") for stage in plan["coverage"] if stage["warning"]]
    lines += [f"Note      {note}" for note in plan["notes"]]
    if len(plan["choices"]) > 1:
        lines += ["", *choices(plan["choices"], look)]
    lines += ["", *_offers(plan["offers"], plan["rejected"], look, why=why)]
    lines += [look.paint(f"! {problem}", "bad") for problem in plan["problems"]]
    return "\n".join(lines)


def offers(fitting: Sequence[OfferView], rejected: Sequence[OfferView], look: Look, *, why: bool) -> str:
    return "\n".join(_offers(fitting, rejected, look, why=why, shown=len(fitting)))


def _cost(plan: Plan) -> str:
    if plan["cost"] is None or plan["hours"] is None:
        return "unknown: no machine on the market fits"
    reserve = f", of it {dollars(plan['reserve'])} reserved for bringing the model home" if plan["reserve"] else ""
    return f"about {dollars(plan['cost'])} in {duration(plan['hours'] * 3600)}{reserve}"


def _way(way: WayView) -> str:
    """From the end of the GGUF stage until the machine may go."""
    why = "" if way["why"] is None else f"; taken: {way['why']}"
    rent = f"{duration(way['seconds'])} of rent after the GGUF, {dollars(way['cost'])}"
    return f"{way['way']} {rent}, {size(way['bytes'])} to fetch{why}"


def choices(ways: Sequence[ChoiceView], look: Look) -> list[str]:
    """How many GPUs, to choose from: the job file's own is marked."""
    said = [", ".join([*way["marks"], *(["this job file"] if way["asked"] else [])]) for way in ways]
    return table(
        [
            Column("GPUS", [str(way["gpus"]) for way in ways], right=True),
            Column("PLACEMENT", [way["placement"] for way in ways]),
            Column("TRAINING", [duration(way["training_hours"] * 3600) for way in ways], right=True),
            Column("WHOLE JOB", [duration(way["hours"] * 3600) for way in ways], right=True),
            Column("COST", [dollars(way["cost"]) for way in ways], right=True),
            Column("", said, least=24),
        ],
        look,
    )


def _offers(
    fitting: Sequence[OfferView], rejected: Sequence[OfferView], look: Look, *, why: bool, shown: int = OFFERS_SHOWN
) -> list[str]:
    lines = [f"{len(fitting)} offers fit, {len(rejected)} do not." + ("" if why or not rejected else "   Why: --why")]
    listed = [*fitting[:shown], *(rejected if why else ())]
    if listed:
        lines += table(
            [
                Column("OFFER", [str(offer["offer"]) for offer in listed], right=True),
                Column("GPU", [offer["gpu"] for offer in listed]),
                Column("$/H", [cents(offer["price_per_hour"]) for offer in listed], right=True),
                Column("RELIABLE", [f"{offer['reliability']:.1%}" for offer in listed], right=True, drop=1),
                Column("WHERE", [offer["location"] for offer in listed], drop=2),
                Column("NOT TAKEN BECAUSE" if why else "", [offer["reason"] for offer in listed], least=24),
            ],
            look,
        )
    return lines
