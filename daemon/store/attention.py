"""What a person has to look at: something bills that should not, or a model may be lost. Exit code 11 under --check."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from daemon import platform
from daemon.domain.lifecycle import STAGES, TERMINAL
from daemon.store.shapes import Activity, Attention, JobView, LeaseView

LEAST_FREE = 1 << 20  # bytes: less, and SQLite's next commit may not find room


def needed(
    jobs: Sequence[JobView], leases: Sequence[LeaseView], written_off: Sequence[LeaseView], state: Path
) -> list[Attention]:
    """Urgent ones first, otherwise the folder `state`, jobs, leases, then `written_off`, of which each may bill."""
    ended = {job["id"] for job in jobs if job["state"] in TERMINAL}
    found = [*_of_disk(state)]
    found += [item for job in jobs for item in _of_job(job)]
    found += [item for lease in leases for item in _of_lease(lease, ended)]
    found += [_of_written_off(lease) for lease in written_off]
    return sorted(found, key=lambda item: not item["urgent"])


def _of_disk(state: Path) -> Iterator[Attention]:
    if platform.free_bytes(state) < LEAST_FREE:
        text = f"the disk of {state} takes no more writes: no limit of cost or time is enforced until it does"
        hint = f"df -h {state}   and make room there"
        yield Attention(kind="DISK_FULL", urgent=True, job=None, instance=None, text=text, hint=hint)


def of_export(file: str | None) -> Attention:
    """This home drives nothing: its jobs were written into `file`, or an export of them was cut short."""
    if file:
        text = f"the jobs of this home were exported to another computer, with {file}: nothing is driven here"
        hint = f"jobctl import {shlex.quote(file)}   takes them back, if they were never imported elsewhere"
    else:
        text = "an export of this home was cut short, so there may be no file, and nothing is driven here"
        hint = "jobctl export FILE, then jobctl import FILE   takes the jobs back"
    return Attention(kind="EXPORTED", urgent=not file, job=None, instance=None, text=text, hint=hint)


def of_market(since: str, problem: str) -> Attention:
    """No listing could be trusted `since` then, for `problem`."""
    text = (
        f"the market cannot be asked since {since}: {problem}; nothing is rented, stopped or confirmed gone until it "
        "can be"
    )
    return Attention(kind="UNLISTED", urgent=True, job=None, instance=None, text=text, hint="jobctl doctor")


def _of_job(job: JobView) -> Iterator[Attention]:
    ref, lease = job["id"], job["lease"]
    instance = lease["instance"] if lease else None
    hint = f"jobctl show {ref}"
    if hold := job["hold"]:
        detail = f": {hold['detail']}" if hold["detail"] else ""
        text = f"{ref} is HELD: {hold['meaning']}{detail}"
        yield Attention(kind="HELD", urgent=True, job=ref, instance=instance, text=text, hint=hold["commands"][0])
    if not job["safety"]["safe"] and job["safety"]["path"]:
        text = f"{ref}: {job['safety']['text']}"
        yield Attention(kind="MODEL_MISSING", urgent=False, job=ref, instance=instance, text=text, hint=hint)
    if job["activity"] == Activity.OUT_OF_CONTACT:
        work = "the work on it goes on, " if job["state"] in STAGES else ""
        text = f"{ref} is out of contact since {job['out_of_contact_since']}; {work}the machine is kept"
        yield Attention(kind="OUT_OF_CONTACT", urgent=False, job=ref, instance=instance, text=text, hint=hint)
    if job["verification"] == "HASH" and job["state"] not in TERMINAL:
        text = f"{ref}: verify: {{level: hash}}, so the model is not run before its machine is destroyed"
        yield Attention(kind="HASH_ONLY", urgent=False, job=ref, instance=instance, text=text, hint=hint)
    if job["activity"] == Activity.UNANSWERED:
        text = (
            f"{ref}: the reply to a rental was lost, so a machine may bill; it is looked for, and nothing else is "
            "rented meanwhile"
        )
        yield Attention(kind="UNANSWERED", urgent=False, job=ref, instance=None, text=text, hint=hint)
    if job["activity"] == Activity.RENTING:
        text = f"{ref}: a machine was asked for, and the market's answer is not here yet; it may bill"
        yield Attention(kind="RENTING", urgent=False, job=ref, instance=None, text=text, hint=hint)


def _of_lease(lease: LeaseView, ended: set[str]) -> Iterator[Attention]:
    if lease["state"] not in ("LIVE", "LOST"):
        return
    instance, job = lease["instance"], lease["job"]
    bills = f"may bill ${lease['price_per_hour']}/h"
    hint = f"jobctl write-off {instance}"
    if lease["destroy_requested"]:
        text = f"instance {instance}: destroy requested, NOT confirmed, {bills}"
        yield Attention(kind="NOT_CONFIRMED", urgent=False, job=job, instance=instance, text=text, hint="jobctl leases")
    elif job is None:
        text = f"instance {instance} carries our label and belongs to no job, {bills}"
        adopt = f"jobctl adopt {instance} JOB.yaml"
        yield Attention(kind="ORPHAN", urgent=True, job=None, instance=instance, text=text, hint=adopt)
    if job in ended:
        text = f"instance {instance} of the ended job {job} reappeared, {bills}"
        yield Attention(kind="REAPPEARED", urgent=True, job=job, instance=instance, text=text, hint=hint)
    if lease["state"] == "LOST":
        text = f"instance {instance} is lost from sight since {lease['last_seen']}, {bills}"
        yield Attention(kind="LOST", urgent=False, job=job, instance=instance, text=text, hint="jobctl leases")


def _of_written_off(lease: LeaseView) -> Attention:
    instance, seen = lease["instance"], lease["last_seen"]
    text = (
        f"instance {instance} was written off; the market {f'listed it last {seen}' if seen else 'never listed it'}, "
        f"may bill ${lease['price_per_hour']}/h"
    )
    hint = "end it in the market's console"
    return Attention(kind="WRITTEN_OFF", urgent=False, job=lease["job"], instance=instance, text=text, hint=hint)
