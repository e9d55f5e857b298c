"""Whatever is known about a job, in any combination: the rules that no decision of `plan` may break."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import NOW, RECEIPT, RULES, TOKEN, job, lease, op, report, runs

from daemon.domain import actions
from daemon.domain import plan as p
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import EDGES, MAIN_LINE, JobState
from daemon.domain.records import Job, Kind, Lease, LeaseState, Operation, OpState, Wish
from daemon.domain.snapshot import Snapshot

DAY_MS = 86_400_000
ENDINGS = {edge.trigger for edge in EDGES if edge.target.is_terminal}
ACTIVE = [state for state in MAIN_LINE if not state.is_terminal]
STATUSES = [None, "created", "loading", "running", "stopped", "exited", "offline", "unknown", "never heard of"]
moments = st.integers(NOW - DAY_MS, NOW + 3_600_000)  # a little of the future: the wall clock may step back


@st.composite
def job_rows(draw: st.DrawFn) -> Job:
    held = draw(st.none() | st.sampled_from(HoldReason))
    return job(
        draw(st.sampled_from(ACTIVE)),
        hold_reason=held,
        hold_since=draw(moments) if held else None,
        wish=draw(st.none() | st.sampled_from(Wish)),
        manifest_sha256=draw(st.none() | st.just("m")),
        spoken_at=draw(moments),
    )


@st.composite
def lease_rows(draw: st.DrawFn, number: int, states: list[LeaseState]) -> Lease:
    state = draw(st.sampled_from(states))
    return lease(
        id=number,
        instance_id=76 + number,
        state=state,
        status=draw(st.sampled_from(STATUSES)),
        intended=draw(st.sampled_from([None, "running", "stopped"])),
        host_key=draw(st.none() | st.just("k")),
        provisioned=draw(st.none() | st.just(1)),
        running_ms=draw(st.integers(0, DAY_MS)),
        created_at=draw(moments),
        last_seen=draw(moments),
        status_since=draw(st.none() | moments),
        gone_at=draw(moments) if state in (LeaseState.GONE, LeaseState.WRITTEN_OFF) else None,
    )


@st.composite
def operation_rows(draw: st.DrawFn) -> Operation:
    at = draw(moments)
    return replace(
        op(draw(st.sampled_from(Kind)), draw(st.sampled_from(OpState))),
        lease_id=draw(st.sampled_from([1, 2, 3])),
        nonce=draw(st.sampled_from(["n1", "n2", "n3", "old"])),
        permit=draw(st.sampled_from(["receipt", "token", "unused"])),
        created_at=at,
        sent_at=draw(st.none() | st.just(at)),
        resolved_at=draw(st.none() | st.just(at)),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """At most one LIVE lease, which the database enforces; everything else as it comes."""
    old = [LeaseState.LOST, LeaseState.GONE, LeaseState.WRITTEN_OFF]
    leases = [draw(lease_rows(number, old)) for number in range(1, draw(st.integers(1, 3)))]
    live = draw(st.none() | lease_rows(len(leases) + 1, [LeaseState.LIVE]))
    return Snapshot(
        now_ms=NOW,
        job=draw(job_rows()),
        rules=replace(RULES, ask_before_destroy=draw(st.booleans())),
        lease=live,
        leases=(*leases, live) if live else tuple(leases),
        operations=tuple(draw(st.lists(operation_rows(), max_size=6))),
        stages=runs(draw(st.integers(0, 3))),
        receipt=draw(st.none() | st.just(RECEIPT)),
        loss_ms=draw(st.none() | moments),
        token=draw(st.none() | st.just(TOKEN)),
        report=draw(st.none() | st.builds(report, st.sampled_from([0, 1]), st.integers(0, 900))),
        stage_failure=draw(st.none() | st.just("out of memory")),
        downloaded=draw(st.booleans()),
        rescued=draw(st.booleans()),
        asked_market_ms=draw(st.none() | moments),
        nothing_fits_since_ms=draw(st.none() | moments),
        accepted=draw(st.booleans()),
        link_down_since_ms=draw(st.none() | moments),
    )


@settings(max_examples=1500, deadline=None)
@given(snapshots())
def test_rules(s: Snapshot) -> None:
    """Each rule names what it protects: the model, the money, the person's word."""
    action = p.plan(s)

    if isinstance(action, actions.Destroy):
        typed = s.token is not None and s.token.instance_id == action.lease.instance_id
        assert action.lease.is_held
        assert not s.work_started(action.lease) or s.receipt is not None or typed, "the only copy of a model"
    if isinstance(action, actions.Rent):
        assert s.lease is None and s.open(Kind.CREATE) is None, "rents twice"
        assert s.job.hold_reason is None and s.job.wish is None, "rents against the person's word"
    if s.open(Kind.CREATE):
        assert isinstance(action, actions.Wait), "acts while it is unknown what is rented"
    if isinstance(action, actions.Move) and action.trigger in ENDINGS:
        assert s.nothing_rented, "ends while something may bill"
    if s.job.hold_reason and not s.job.wish:
        assert not isinstance(action, actions.HoldJob), "holds what is held: a loop"
        assert not isinstance(action, actions.StartStage | actions.StartMachine | actions.Provision | actions.Move), (
            "works on while held"
        )
    if isinstance(action, actions.Wait | actions.HoldJob):
        told = action.why if isinstance(action, actions.Wait) else action.detail
        assert told, "waits without a reason"
    if isinstance(
        action,
        actions.Watch
        | actions.Save
        | actions.StopStages
        | actions.StartStage
        | actions.Download
        | actions.FetchManifest,
    ):
        reachable = action.lease.is_running or action.lease.status in p.UNREACHABLE  # as far as the market knows
        assert reachable and action.lease.host_key is not None, "speaks to a machine it does not know"


@settings(max_examples=500, deadline=None)
@given(snapshots())
def test_silence_destroys_nothing(s: Snapshot) -> None:
    """The same a month later, with nobody having said a word: what worked is still there."""
    action = p.plan(replace(s, now_ms=NOW + 30 * DAY_MS, receipt=None, token=None))

    assert not (isinstance(action, actions.Destroy) and s.work_started(action.lease))
    assert not isinstance(action, actions.Rent) or s.job.state is not JobState.VERIFIED
