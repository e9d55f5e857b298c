"""`jobctl status`."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.cli.screens.footer import attention, money_strip
from daemon.cli.terminal import Column, Look, cents, duration, seconds_since, size, table
from daemon.store.shapes import Jobs, JobView, Progress

EMPTY = "No jobs. Nothing is being rented. $0.00/h.   Start with: jobctl demo"


def screen(reading: Jobs, look: Look, now: float) -> str:
    """Every job of `reading` in one line of at most `look.width`, then the money, then what needs a person."""
    money = reading["money"]
    if not (reading["jobs"] or money["machines"] or money["unsure"] or money["problem"]):
        return "\n".join([EMPTY, *attention(reading["attention"], look)])
    lines = []
    if reading["jobs"]:
        title, *rows = _table(reading["jobs"], look, now)
        beside = [
            f"{job['id']}: {on_its_way(job['moving'])}" for job in reading["jobs"] if job["moving"] and job["progress"]
        ]
        lines = [look.paint(title, "dim"), *rows, *beside, ""]
    lines += money_strip(money, look, now)
    lines += attention(reading["attention"], look)
    return "\n".join(lines)


def _table(jobs: Sequence[JobView], look: Look, now: float) -> list[str]:
    leases = [job["lease"] for job in jobs]
    return table(
        [
            Column("JOB", [job["id"] for job in jobs]),
            Column("NAME", [job["name"] for job in jobs], least=8),
            Column("STATE", [state(job) for job in jobs], least=18),
            Column("PROGRESS", [_progress(job, look, now) for job in jobs], least=19),
            Column("LOSS", [_number(job["loss"]) for job in jobs], right=True, drop=4),
            Column("GPU", [lease["gpu"] if lease else "" for lease in leases], drop=3),
            Column("UTIL", [_percent(lease["gpu_util"]) if lease else "" for lease in leases], right=True, drop=2),
            Column("$/H", [cents(lease["rate"]) if lease else "-" for lease in leases], right=True, drop=6),
            Column("COST", [cents(job["cost"]) for job in jobs], right=True),
            Column("ETA", [_eta(job) for job in jobs], right=True, drop=5),
            Column("AGE", [duration(seconds_since(job["created_at"], now) or 0) for job in jobs], right=True, drop=1),
        ],
        look,
    )


def state(job: JobView) -> str:
    """The state, and what goes on beside it: `GGUF > downloading`, `DPO (HELD)`."""
    beside = f" > {job['activity'].lower().replace('_', ' ')}" if job["activity"] else ""
    return job["state"] + (" (HELD)" if job["hold"] else "") + beside


def _progress(job: JobView, look: Look, now: float) -> str:
    if job["hold"]:
        return job["hold"]["detail"] or job["hold"]["meaning"]
    if job["activity"] == "OUT_OF_CONTACT":
        return f"no contact {duration(seconds_since(job['out_of_contact_since'], now) or 0)}"
    if progress := job["progress"] or job["moving"]:
        done, total = progress["done"], progress["total"]
        return f"{look.bar(done, total)} {counted(done, total, progress['unit'])}"
    lease = job["lease"]
    return lease["status_message"] if lease and job["activity"] == "BOOTING" else ""


def counted(done: int, total: int, unit: str) -> str:
    """412/520, or 4.1/6.2 GB."""
    if unit == "STEPS":
        return f"{done}/{total}"
    number, name = size(total).split(" ")
    scale = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}[name]
    return f"{done / scale:.1f}/{number} {name}"


MOVES = {"UPLOAD": "goes up", "MIRROR": "comes home"}


def on_its_way(moving: Progress) -> str:
    """`comes home: 12.3/40.0 MB   3.1 MB/s   261.1 kB sent again   9s left`"""
    counts = counted(moving["done"], moving["total"], moving["unit"])
    left = _left_s(moving)
    end = [] if left is None else [f"{duration(left)} left"]
    return "   ".join([f"{MOVES[moving['stage']]}: {counts}", *pace(moving), *end])


def pace(moving: Progress) -> list[str]:
    """How fast bytes move, and how many were sent twice, as far as it is known."""
    parts = [] if moving["per_s"] is None else [f"{moving['per_s'] / 1e6:,.1f} MB/s"]
    return [*parts, f"{size(moving['resent'])} sent again"] if moving["resent"] else parts


def _left_s(moving: Progress) -> float | None:
    per_s = moving["per_s"]
    return (moving["total"] - moving["done"]) / per_s if per_s else None


def _eta(job: JobView) -> str:
    if job["hold"]:
        return "you"
    if job["progress"] is None and job["moving"] and (left := _left_s(job["moving"])) is not None:
        return duration(left)
    return duration(job["eta_s"]) if job["eta_s"] is not None else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}%"
