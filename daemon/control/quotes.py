"""What a job would take, and what the market has for it: read-only, nothing is spent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon.artifacts import workstation
from daemon.artifacts.workstation import Objection
from daemon.control import delivery, reporters
from daemon.control.jobfile import data_sets, model_folder
from daemon.control.world import World
from daemon.domain import money, units
from daemon.domain.choices import Choice, choices
from daemon.domain.coverage import coverage
from daemon.domain.deliver import REBUILD, Delivery, WayHome
from daemon.domain.estimate import RANKS_MEASURED, Estimate, estimate, over_limits
from daemon.domain.lifecycle import JobState
from daemon.domain.market import Offer
from daemon.domain.model_size import folder_parameters
from daemon.domain.offers import Ranking, query, rank, widened
from daemon.domain.spec import JobSpec, from_canonical
from daemon.errors import CredentialsRefused, HomeportError, MarketError
from daemon.store import downloads, jobs, leases, machines
from daemon.store.views import coverage_view

SHOWN = 3  # offers of a plan
SHORT_CREDIT_H = 24.0
MARGIN = 1.1  # of disk space, over the bytes that come home


def expected(
    spec: JobSpec, folder: Path, rows: Mapping[str, int], offer: Offer | None = None, line: float | None = None
) -> Estimate:
    """The estimate, with the base model's true size where its weights lie here; `line` as measured, in Mbit/s."""
    parameters = None
    if (local := model_folder(spec, folder)) is not None:
        with contextlib.suppress(OSError):  # weights that were taken away since: its name tells about as much
            parameters = folder_parameters(local)
    return estimate(spec, rows, offer, line_mbps=line, parameters=parameters)


async def objections(world: World, spec: JobSpec, folder: Path, estimated: Estimate) -> list[Objection]:
    """Why this workstation cannot receive and verify the model, rebuild it, or tell the board that the job names."""
    board = reporters.objections(spec, os.environ)
    if spec.deliver == REBUILD and (why := await delivery.problem(world, spec, folder, estimated, None)):
        board.append(Objection(f"deliver: rebuild: {why}", "write in the job file: deliver: auto"))
    needed = round((estimated.model_bytes + _promised(world)) * MARGIN)
    return board + await workstation.check(
        world.settings.paths.models, needed=needed, largest=estimated.model_bytes, depth=spec.verify.level
    )


def _promised(world: World) -> int:
    """Bytes that unfinished jobs have yet to bring home to the same disk."""
    with world.database.read() as c:
        waiting = [job for job in jobs.unfinished(c) if job.state not in (JobState.DOWNLOADED, JobState.VERIFIED)]
    total = 0
    for job in waiting:
        spec, rows = from_canonical(job.spec_json), {kind: data.rows for kind, data in data_sets(job).items()}
        total += expected(spec, Path(job.spec_dir), rows).model_bytes
    return total


async def ranked(
    world: World, spec: JobSpec, folder: Path, rows: Mapping[str, int], credit: int | None
) -> tuple[Ranking, int]:
    """The offers for `spec`, best first, and the disk in GB they were priced with."""
    with world.database.read() as c:
        bad = machines.bad(c, world.clock.wall_ms())
        line = downloads.measured_line(c)
    asked = query(spec, expected(spec, folder, rows, line=line), min_cuda=world.settings.image.cuda or None)
    found = await world.operator.market.search(asked)
    ranking = rank(
        found,
        spec,
        asked,
        lambda offer: expected(spec, folder, rows, offer, line),
        bad_machines=bad,
        credit=credit,
        now_ms=world.clock.wall_ms(),
    )
    return ranking, asked.disk_gb


async def plan(
    world: World, spec: JobSpec, folder: Path, rows: Mapping[str, int], notes: Sequence[str]
) -> dict[str, Any]:
    """api.messages.Plan, beginning with `notes`. A market that cannot be asked is a note, not a failure."""
    notes = list(notes)
    ranking = Ranking((), ())
    try:
        account = await world.operator.market.account()
        ranking, _ = await ranked(world, spec, folder, rows, account.credit)
    except (MarketError, HomeportError) as error:
        notes.append(f"the market could not be asked: {error.message}")
    best = ranking.chosen[0] if ranking.chosen else None
    with world.database.read() as c:
        line = downloads.measured_line(c)
    estimated = expected(spec, folder, rows, best, line)
    ways = choices(spec, best, lambda other, offer: expected(other, folder, rows, offer, line)) if best else []
    if best and any(choice.gpus > 1 for choice in ways):
        notes.append(
            f"GPUs at {money.show(best.price_per_hour // best.num_gpus)}/h each; speeds are measured to "
            f"{RANKS_MEASURED} GPUs, beyond them extrapolated"
        )
    steps = {kind.upper(): count for kind, count in estimated.steps.items()}
    problems = [f"{o.problem} (try: {o.mend})" for o in await objections(world, spec, folder, estimated)]
    chosen, both = await delivery.choose(world, spec, folder, estimated, measured=line, revision=None, offer=best)
    if spec.speed == "plain":
        notes.append("speed: plain: trained as TRL alone would, several times slower than fast and to the same model")
    if spec.verify.level == "hash":
        notes.append("verify: {level: hash}: the model is not run before the machine is destroyed")
    return {
        "name": spec.name,
        "model": spec.model,
        "rows": {kind.upper(): count for kind, count in rows.items()},
        "steps": steps,
        "coverage": [coverage_view(stage) for stage in coverage(rows, {"steps": steps}, spec.batch_size)],
        "limits": _limits(spec),
        "hours": estimated.total_s / 3600 if best else None,
        "cost": money.decimal_string(estimated.cost) if best else None,
        "reserve": money.decimal_string(estimated.reserve) if best else None,
        "download_bytes": estimated.model_bytes,
        "deliver": [way_view(way, chosen) for way in both],
        "disk_gb": estimated.disk_gb,
        "currency": "USD",
        "offers": [offer_view(offer) for offer in ranking.chosen[:SHOWN]],
        "rejected": [offer_view(offer, reason) for offer, reason in ranking.rejected],
        "choices": [choice_view(choice) for choice in ways],
        "notes": [*notes, *(f"assumed: {text}" for text in estimated.assumed)],
        "problems": problems + over_limits(spec, estimated),
    }


async def offers(world: World, filters: Mapping[str, Any]) -> dict[str, Any]:
    """api.messages.Offers for plain filters, without a job."""
    price = filters.get("max_price")
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "offers",
            "model": "any/model-7b",
            "sft": {"data": "-"},
            "machine": {"gpu": tuple(filters.get("gpu") or ()), "count": filters.get("count") or 1},
            "limits": {"price": units.dollars_per_hour(price) if price else None},
        }
    )
    asked = query(spec, estimate(spec, {}), min_cuda=world.settings.image.cuda or None)
    found = await world.operator.market.search(widened(asked))  # wide, so that each reason can be shown
    ranking = rank(found, spec, asked, lambda offer: estimate(spec, {}, offer), now_ms=world.clock.wall_ms())
    return {
        "offers": [offer_view(offer) for offer in ranking.chosen],
        "rejected": [offer_view(offer, reason) for offer, reason in ranking.rejected],
        "currency": "USD",
    }


def offer_view(offer: Offer, reason: str = "") -> dict[str, Any]:
    """api.messages.OfferView."""
    return {
        "offer": offer.id,
        "gpu": f"{offer.num_gpus}x {offer.gpu_name}",
        "price_per_hour": money.decimal_string(offer.price_per_hour),
        "reliability": offer.reliability,
        "location": offer.geolocation,
        "reason": reason,
    }


def choice_view(choice: Choice) -> dict[str, Any]:
    """api.messages.ChoiceView."""
    return {
        "gpus": choice.gpus,
        "placement": choice.placement,
        "training_hours": choice.expected.training_s / 3600,
        "hours": choice.expected.total_s / 3600,
        "cost": money.decimal_string(choice.expected.cost),
        "measured": choice.measured,
        "asked": choice.asked,
        "marks": list(choice.marks),
    }


def way_view(way: WayHome, chosen: Delivery) -> dict[str, Any]:
    """api.messages.WayView."""
    return {
        "way": way.way,
        "seconds": way.seconds,
        "cost": money.decimal_string(way.cost),
        "bytes": way.bytes,
        "why": chosen.why if way.way == chosen.way else None,
    }


async def checks(world: World) -> dict[str, Any]:
    """api.messages.Checks: what only the daemon knows."""
    found: list[dict[str, str]] = []

    def add(name: str, status: str, detail: str, fix: str = "") -> None:
        found.append({"name": name, "status": status, "detail": detail, "fix": fix})

    try:
        account = await world.operator.market.account()
        with world.database.read() as c:
            burn = sum(lease.rate for lease in leases.held(c))
        hours = account.credit / burn if burn else None
        lasts = "" if hours is None else f", {hours:.0f} h at {money.show(burn)}/h"
        short = account.credit <= 0 or (hours is not None and hours < SHORT_CREDIT_H)
        mend = "top up the account: without credit the market stops every machine" if short else ""
        add("account", "WARN" if short else "PASS", f"credit {money.show(account.credit)}{lasts}", mend)
    except HomeportError as error:
        add("account", "FAIL", error.message, error.hint)
    else:
        add(*await _charges_check(world))
    listing = await world.operator.market.listing()
    add("listing", "PASS" if listing.trusted else "FAIL", listing.problem or f"{len(listing.instances)} instances")
    with world.database.read() as c:
        orphans = [lease for lease in leases.held(c) if lease.job_id is None]
    for lease in orphans:
        add(
            "orphan",
            "FAIL",
            f"instance {lease.instance_id} carries our label but belongs to no job",
            f"jobctl adopt {lease.instance_id} JOB.yaml",
        )
    return {"checks": found}


async def _charges_check(world: World) -> tuple[str, str, str, str]:
    """A key with chosen permissions may not read them, and it is too late to find out when a rental is in doubt."""
    try:
        await world.operator.market.charges(world.clock.wall_ms())
    except CredentialsRefused as error:
        detail = f"{error.message.rstrip('.')}; without charges a rental that was not answered stays in doubt"
        return "charges", "WARN", detail, "let the key read billing (billing_read)"
    except MarketError as error:
        return "charges", "WARN", error.message, error.hint
    return "charges", "PASS", "the market tells what it took", ""


def _limits(spec: JobSpec) -> dict[str, str]:
    limits = spec.limits
    return {
        "price": f"{money.show(limits.price)}/h" if limits.price else "none",
        "cost": money.show(limits.cost) if limits.cost else "none",
        "time": units.show_duration(limits.time) if limits.time else "none",
        "hold": money.show(limits.hold),
    }
