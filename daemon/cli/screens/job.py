"""`jobctl show JOB`: its states, whether the model is safe, machine, money, what happened, what to type."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from daemon.cli.screens.jobs import counted, on_its_way, pace, state
from daemon.cli.terminal import Look, dollars, duration, local, seconds_since
from daemon.domain.lifecycle import MAIN_LINE
from daemon.store.shapes import CoverageView, Event, JobPage, JobView, LeaseView

LABEL = 12  # width of the left column
NO_BREAK = "\xa0"
DEADLINES = {"CONTRACT_ENDS": "the rental contract ends", "CREDIT_ENDS": "the account's credit ends at this rate"}


def screen(page: JobPage, look: Look, now: float) -> str:
    job = page["job"]
    lines = [look.paint(f"{job['name']}  ({job['id']})   {state(job)}", "bold") + f"   attempt {job['attempt']}"]
    lines += _wrapped(f"  {job['model']}", look, indent=2)
    lines += _stepper(page, look, now)
    lines += [f"  {line}" for line in _training(page, look, now)]
    for label, text, colour in _facts(page, look, now):
        first, *rest = _wrapped(f"{label:<{LABEL - 2}}  {text}", look, indent=LABEL)
        lines += [look.paint(first, colour) if colour else first, *rest]
    return "\n".join(lines)


def _stepper(page: JobPage, look: Look, now: float) -> list[str]:
    """QUEUED 14s > PROVISIONED 4m06s > [SFT 2h27m] > DPO > ... in lines that fit; a state visited twice counts once."""
    job, spent = page["job"], _spent(page, now)
    line = [str(s) for s in MAIN_LINE if s not in ("SFT", "DPO") or s in job["stages"]]
    shown = line if job["state"] in line else [s for s in line if s in spent] + [job["state"]]
    steps = []
    for name in shown:
        text = f"{name} {duration(spent[name])}" if name in spent and name != shown[-1] else name
        steps.append(f"[{text}]" if name == job["state"] else text)
    rows: list[str] = []
    row = "  "
    for i, step in enumerate(steps):
        piece = step if i == len(steps) - 1 else f"{step} > "
        if len(row) + len(piece.rstrip(" >")) > look.width - 2 and row.strip():
            rows, row = [*rows, row.rstrip()], "  "
        row += piece
    return [*rows, row.rstrip()]


def _spent(page: JobPage, now: float) -> dict[str, float]:
    """Seconds in each state so far."""
    spent: dict[str, float] = {}
    moves = page["moves"]
    for i, move in enumerate(moves):
        began = seconds_since(move["at"], now) or 0
        left = (seconds_since(moves[i + 1]["at"], now) or 0) if i + 1 < len(moves) else 0
        spent[move["state"]] = spent.get(move["state"], 0) + began - left
    return spent


def _training(page: JobPage, look: Look, now: float) -> Iterator[str]:
    job = page["job"]
    parts = []
    if progress := job["progress"]:
        unit = "step " if progress["unit"] == "STEPS" else "here "
        parts.append(unit + counted(progress["done"], progress["total"], progress["unit"]))
        parts += pace(progress)
    if job["loss"] is not None:
        parts.append(f"loss {job['loss']:.3f} {look.spark(page['losses'])}".rstrip())
    if job["lr"] is not None and job["progress"]:
        parts.append(f"lr {job['lr']:.1e}")
    if job["tok_s"] is not None and job["progress"]:
        parts.append(f"{job['tok_s']:,.0f} tok/s")
    if parts:
        yield "   ".join(parts)
    if job["moving"]:
        yield on_its_way(job["moving"])
    since = seconds_since(job["box_seen_at"], now)
    if since is not None and job["lease"] and job["lease"]["state"] == "LIVE":
        yield f"last report {duration(since)} ago{_gpu(job)}"


def _gpu(job: JobView) -> str:
    if job["gpu_busy"] is None:
        return ""
    memory = "" if job["gpu_memory"] is None else f", memory {job['gpu_memory']:.0f}% full"
    return f"   GPU {job['gpu_busy']:.0f}% busy{memory}"


def _facts(page: JobPage, look: Look, now: float) -> Iterator[tuple[str, str, str | None]]:
    """(label, text, colour or None), top to bottom."""
    job, lease = page["job"], page["job"]["lease"]
    if hold := job["hold"]:
        detail = f": {hold['detail']}" if hold["detail"] else ""
        yield "HELD", f"{hold['meaning']}{detail} (since {local(hold['since'], now)}, by {hold['by']})", "bad"
        yield "", f"{hold['advice']}:   {_listed(hold['commands'])}", None
    if job["wish"]:
        yield "Wish", f"{job['wish']} is asked for and not done yet", "warn"
    yield "Model safe here?", job["safety"]["text"], "good" if job["safety"]["safe"] else "warn"
    for i, told in enumerate(page["scores"]):
        yield "" if i else "Is it better?", told, None
    if deadline := job["loss_deadline"]:
        yield "Lost after", f"{local(deadline['at'], now)}: {DEADLINES[deadline['cause']]}", None
    if job["verification"] == "HASH":
        yield "Checks", "hash only, as the spec asks: how the model behaves is not checked", None
    if lease:
        yield "Machine", _machine(lease, now), None
        if lease["destroy_requested"]:
            since = local(lease["destroy_requested"], now)
            yield "", f"destroy requested {since}, NOT confirmed, may bill ${lease['price_per_hour']}/h", "warn"
    if job["placement"]:
        yield "Placement", job["placement"], None
    yield "Money", _money(job), None
    for i, told in enumerate(page["delivery"]):
        yield "" if i else "Way home", told, None
    for stage in job["coverage"]:
        yield "Rows", _coverage(stage), None
        if stage["warning"]:
            yield "", f"! {stage['warning']}", "warn"
    if job["expected_s"]:
        yield "Expected", _expected(page, now), None
    if job["eta_s"] is not None:
        what = "the download" if job["activity"] == "DOWNLOADING" else job["state"]
        yield "Finish", f"{what} ends in about {duration(job['eta_s'])}", None
    for i, event in enumerate(reversed(page["recent"])):
        told = look.clip(f"{local(event['at'], now)}  {_told(event)}", look.width - LABEL)
        yield "Recent" if i == 0 else "", told, None
    yield "Next", _listed(_next(job)), None


def _machine(lease: LeaseView, now: float) -> str:
    parts = [f"lease {lease['lease']}, instance {lease['instance']}", lease["gpu"], lease["state"]]
    if lease["state"] in ("LIVE", "LOST"):
        parts.append(lease["status"] or "not listed yet")
        if lease["gpu_util"] is not None:
            parts.append(f"util {lease['gpu_util']:.0f}%")
        if lease["contract_ends"]:
            parts.append(f"contract to {local(lease['contract_ends'], now)}")
    return ", ".join(parts)


def _money(job: JobView) -> str:
    lease = job["lease"]
    rate = f"{dollars(lease['rate'])}/h   " if lease and lease["state"] in ("LIVE", "LOST") else ""
    cap = f"   cap {dollars(job['cost_limit'])}" if job["cost_limit"] else "   no cap"
    return f"{rate}so far {dollars(job['cost'])}{cap}"


def _coverage(stage: CoverageView) -> str:
    return (
        f"{stage['stage']}: {stage['read']:,} read, {stage['kept'] or 0:,} kept, {stage['trained']:,} trained at least "
        f"once, {stage['truncated'] or 0:,} cut at max_length"
    )


def _expected(page: JobPage, now: float) -> str:
    """What the spec expects of a step and of each stage, beside what they take."""
    job, spent = page["job"], _spent(page, now)
    parts = []
    for name, seconds in job["expected_s"].items():
        if name == "step":
            truth = "" if job["step_s"] is None else f", here {job['step_s']:.2g} s"
            parts.append(f"{seconds:.2g} s a step{truth}")
        else:
            stage = name.upper()
            truth = f", here {duration(spent[stage])}" if stage in spent else ""
            parts.append(f"{stage} {duration(seconds)}{truth}{' so far' if stage == job['state'] else ''}")
    return "; ".join(parts)


def _told(event: Event) -> str:
    body = "  ".join(f"{key}={value}" for key, value in event["body"].items() if value not in (None, "", []))
    return f"{event['kind']}  {body}".rstrip()


def _next(job: JobView) -> list[str]:
    ref = job["id"]
    if job["hold"]:
        return [f"jobctl logs {ref}", *job["hold"]["commands"]]
    if job["finished_at"]:
        return [f"jobctl metrics {ref}", f"jobctl logs {ref}"]
    watching = [f"jobctl logs {ref} -f", f"jobctl metrics {ref} --plot loss"]
    leaving = job["lease"] is not None and job["lease"]["destroy_requested"] is not None  # hold is refused by then
    return [*watching, f"jobctl {'wait' if leaving else 'hold'} {ref}"]


def _listed(commands: Sequence[str]) -> str:
    """Commands side by side, never broken inside."""
    return "   ".join(command.replace(" ", NO_BREAK) for command in commands)


def _wrapped(text: str, look: Look, indent: int) -> list[str]:
    lead = text[: len(text) - len(text.lstrip())]
    lines = textwrap.wrap(
        text.lstrip(), look.width, initial_indent=lead, subsequent_indent=" " * indent, break_on_hyphens=False
    )
    return [line.replace(NO_BREAK, " ") for line in lines]
