"""`jobctl leases`."""

from __future__ import annotations

from daemon.cli.screens.footer import attention, money_strip
from daemon.cli.terminal import Column, Look, cents, duration, local, seconds_since, table
from daemon.store.shapes import Leases


def screen(reading: Leases, look: Look, now: float, *, everything: bool) -> str:
    shown = [lease for lease in reading["leases"] if everything or lease["state"] in ("LIVE", "LOST")]
    lines = []
    if shown:
        title, *rows = table(
            [
                Column("INSTANCE", [str(lease["instance"]) for lease in shown], right=True),
                Column("JOB", [lease["job"] or "(none)" for lease in shown]),
                Column("LEASE", [lease["state"] for lease in shown]),
                Column("MARKET SAYS", [_status(lease["status"], lease["destroy_requested"]) for lease in shown]),
                Column("GPU", [lease["gpu"] for lease in shown], drop=3),
                Column("$/H", [cents(lease["rate"]) for lease in shown], right=True),
                Column("COST", [cents(lease["cost"]) if lease["lease"] else "?" for lease in shown], right=True),
                Column("SEEN", [_ago(lease["last_seen"], now) for lease in shown], right=True),
                Column("CONTRACT TO", [_end(lease["contract_ends"], now) for lease in shown], drop=2),
            ],
            look,
        )
        lines = [look.paint(title, "dim"), *rows, ""]
    return "\n".join([*lines, *money_strip(reading["money"], look, now), *attention(reading["attention"], look)])


def _status(status: str | None, destroy_requested: str | None) -> str:
    return (status or "not listed") + (", destroy asked" if destroy_requested else "")


def _ago(seen: str | None, now: float) -> str:
    age = seconds_since(seen, now)
    return "never" if age is None else duration(age)


def _end(at: str | None, now: float) -> str:
    return local(at, now) if at else ""
