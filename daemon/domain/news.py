"""What a person is told without asking: pure, from stored facts, so that no crash loses a message.

Each piece of news has a key and is told once a key (control/telling.py). Every text gives the reason, the money, and
the command to type next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from daemon.domain.holds import HOLDS, HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.market import HALTED
from daemon.domain.money import show
from daemon.domain.records import Job, Lease, LeaseState

DAY_MS = 86_400_000
BUDGET_SHARE = 0.8
ENDED = {
    JobState.DESTROYED: "It went well: the model is verified here",
    JobState.ABANDONED: "{by} gave it up",
    JobState.CANCELLED: "{by} cancelled it",
    JobState.FAILED: "Nothing is rented, and nothing is left to save",
}
UNLISTED_MS = 1_800_000  # without a trusted listing, until the person is told
LOSS_NEAR_MS = DAY_MS  # a machine is only taken when its contract and the credit last a day longer than the job


@dataclass(frozen=True)
class News:
    key: str
    title: str
    text: str


@dataclass(frozen=True)
class Facts:
    """One job as it stands. Money in micro-dollars, times in UTC milliseconds."""

    now_ms: int
    job: Job
    leases: Sequence[Lease]
    cost_limit: int | None
    loss_ms: int | None  # when what the machine holds is lost by itself
    lost_since: int | None  # the box is out of contact since then
    silence_ms: int  # of so long a person is told
    awake_since_ms: int = 0  # while this computer slept nobody called the box
    asks: bool = False  # `destroy: ask`: what is verified waits, HELD, for its person
    not_mirrored: tuple[int, str] | None = None  # event and reason, when the last attempt to bring a checkpoint failed
    not_saved: str | None = None  # why the last attempt to save what a held job has failed
    lingering: Sequence[Lease] = ()  # the market agreed long ago to destroy them, and lists them all the same

    @property
    def cost(self) -> int:
        return sum(lease.cost_at(self.now_ms) for lease in self.leases)

    @property
    def rate(self) -> int:
        return sum(lease.rate for lease in self.leases)

    @property
    def money(self) -> str:
        return f"{show(self.cost)} so far, {show(self.rate)}/h now."

    def next(self, *commands: str) -> str:
        return "Next: " + " or ".join(command.format(job=self.job.id) for command in commands)


def of_job(f: Facts) -> Iterator[News]:
    """Everything about one job that is worth telling as it stands now, told already or not."""
    job = f.job
    if job.state.is_terminal:
        yield _ended(f)
        return
    if job.state is JobState.VERIFIED and job.hold_reason is None and not f.asks:
        text = f"In {job.model_dir}; its machine is returned now. {f.money} {f.next('jobctl show {job}')}"
        yield News(f"home {job.id} {job.manifest_sha256}", _titled(job, "the model is home and verified"), text)
    if job.hold_reason is not None:
        yield from _held(f, job.hold_reason)
    if f.cost_limit and f.cost >= BUDGET_SHARE * f.cost_limit:
        text = f"{show(f.cost)} of {show(f.cost_limit)} are spent, {show(f.rate)}/h now. {f.next('jobctl show {job}')}"
        yield News(f"budget {job.id}", _titled(job, "80 % of limits.cost are spent"), text)
    if f.loss_ms is not None and job.state is not JobState.VERIFIED and f.loss_ms - f.now_ms < LOSS_NEAR_MS:
        hours = max(0, f.loss_ms - f.now_ms) / 3_600_000
        text = f"Contract or credit end in {hours:.1f} h, and the model is not safe yet. {f.money} "
        yield News(
            f"loss {job.id} {job.attempt}", _titled(job, "its machine ends soon"), text + f.next("jobctl show {job}")
        )
    live = [lease for lease in f.leases if lease.state is LeaseState.LIVE]
    stands = any(lease.status in HALTED for lease in live)  # nobody expects it to answer
    silent_ms = 0 if f.lost_since is None or stands else f.now_ms - max(f.lost_since, f.awake_since_ms)
    if f.lost_since is not None and silent_ms >= f.silence_ms:
        minutes = (f.now_ms - f.lost_since) // 60_000
        text = f"For {minutes} minutes; the machine is kept and the work on it goes on. {f.money} "
        yield News(
            f"silent {job.id} {f.lost_since}", _titled(job, "out of contact"), text + f.next("jobctl show {job}")
        )
    for lease in f.lingering:
        text = (
            "The market agreed to destroy it, and lists it all the same. It is asked again, and may bill on "
            f"{show(lease.rate)}/h. {f.next('jobctl leases')} or, in the market's console, destroy it there"
        )
        yield News(f"lingers {lease.id}", _titled(job, f"machine {lease.instance_id} is not gone"), text)
    if f.not_saved is not None:
        text = f"{f.not_saved[:300]}. It is tried a few times in each hold. {f.money} {f.next('jobctl show {job}')}"
        yield News(f"unsaved {job.id} {job.hold_since}", _titled(job, "what its machine has does not come home"), text)
    if f.not_mirrored is not None:
        event, why = f.not_mirrored
        text = f"{why[:300]}. Training goes on, but a host that is lost now loses more. {f.next('jobctl show {job}')}"
        yield News(f"mirror {job.id} {event}", _titled(job, "checkpoints do not come home"), text)


def of_market(since_ms: int, now_ms: int, problem: str, rate: int) -> Iterator[News]:
    """No listing can be trusted since then, and something waits for one: told after a while, and then daily."""
    gone_ms = now_ms - since_ms
    if gone_ms < UNLISTED_MS:
        return
    text = (
        f"For {gone_ms / 3_600_000:.1f} h: {problem[:300]}. Until it can be, nothing is rented, stopped or confirmed "
        f"gone; what is rented may bill {show(rate)}/h. Next: jobctl doctor"
    )
    yield News(f"market {since_ms} {gone_ms // DAY_MS}", "The market cannot be asked", text)


def of_orphan(lease: Lease) -> News:
    """A machine with our label that belongs to no job."""
    return News(
        f"orphan {lease.id}",
        f"Machine {lease.instance_id} belongs to no job",
        f"It carries this installation's label and may bill {show(lease.price_per_hour)}/h. "
        f"Next: jobctl leases, then jobctl adopt {lease.instance_id} JOB.yaml",
    )


def of_returned(job: Job, lease: Lease) -> News:
    """A machine of an ended job that the market lists again, or only now."""
    text = (
        "The job has ended, and the market lists a machine of it all the same, which may bill "
        f"{show(lease.price_per_hour)}/h. It is stopped, and returned where nothing on it is needed; otherwise destroy "
        f"it in the market's console. Next: jobctl leases or jobctl write-off {lease.instance_id}"
    )
    return News(f"returned {lease.id}", _titled(job, f"machine {lease.instance_id} is there again"), text)


def _ended(f: Facts) -> News:
    job = f.job
    why = ENDED[job.state].format(by=job.wish_by or "you")
    model = f"The model is in {job.model_dir}." if job.model_dir else "No model."
    left = [str(lease.instance_id) for lease in f.leases if lease.is_held or lease.state is LeaseState.WRITTEN_OFF]
    bills = (
        f"not confirmed gone, may bill on: instance {', '.join(left)}, to end in the market's console"
        if left
        else "nothing of it bills any more"
    )
    text = f"{why}. {model} {show(f.cost)} in all; {bills}. {f.next('jobctl show {job}')}"
    return News(f"ended {job.id}", _titled(job, job.state.value), text)


def _held(f: Facts, reason: HoldReason) -> Iterator[News]:
    """At once unless the person did it, and then daily while the waiting costs something."""
    job = f.job
    days = max(0, f.now_ms - (job.hold_since or f.now_ms)) // DAY_MS if f.rate else 0
    if not days and reason is HoldReason.BY_PERSON:
        return
    row = HOLDS[reason]
    since = f", for {days} day{'s' if days > 1 else ''}" if days else ""
    said = ": ".join(part for part in (row.meaning, job.hold_detail) if part)
    home = f" The model is in {job.model_dir}." if reason is HoldReason.ASK_DESTROY else ""
    text = f"{said[:300]}.{home} {f.money} {f.next(*row.commands)}"
    yield News(f"held {job.id} {reason} {job.hold_since} {days}", _titled(job, f"HELD: {reason.value}{since}"), text)


def _titled(job: Job, what: str) -> str:
    return f"{job.name} ({job.id}): {what}"
