"""`jobctl plan`: what a job file would do and cost."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.api.messages import OfferView, Plan
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
        f"Home      download {size(plan['download_bytes'])}; disk on the machine {plan['disk_gb']} GB",
    ]
    lines += [look.paint(f"! {stage['warning']}", "warn") for stage in plan["coverage"] if stage["warning"]]
    lines += [f"Note      {note}" for note in plan["notes"]]
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
