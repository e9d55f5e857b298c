"""Screens letter by letter, from readings written by hand: 80 columns, narrow ones, no colour where none is wanted."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from daemon.api.messages import Transfer
from daemon.cli import bring
from daemon.cli.screens import job as job_screen
from daemon.cli.screens import jobs as jobs_screen
from daemon.cli.screens import leases as leases_screen
from daemon.cli.screens import metrics as metrics_screen
from daemon.cli.screens import plan as plan_screen
from daemon.cli.terminal import Look
from daemon.domain.coverage import coverage
from daemon.store.shapes import JobPage, Jobs, JobView, Leases, Metric
from daemon.store.views import coverage_view

NOW = 1_790_000_000.0  # 2026-09-21T14:13:20Z


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Screens show this computer's time; for these tests it lives at Greenwich."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def ago(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - seconds))


def lease(**given: Any) -> dict[str, Any]:
    row = {
        "lease": 19,
        "instance": 29481133,
        "job": "k7f3qd",
        "state": "LIVE",
        "status": "running",
        "status_message": "",
        "gpu": "RTX 4090",
        "price_per_hour": "0.41",
        "storage_per_hour": "0.01",
        "rate": "0.41",
        "cost": "1.06",
        "currency": "USD",
        "last_seen": ago(6),
        "contract_ends": ago(-30 * 86_400),
        "gpu_util": 97.0,
        "destroy_requested": None,
    }
    return row | given


def job(**given: Any) -> JobView:
    row = {
        "id": "k7f3qd",
        "name": "support-bot",
        "state": "SFT",
        "activity": None,
        "hold": None,
        "wish": None,
        "attempt": 1,
        "model": "Qwen/Qwen3-4B-Instruct",
        "stages": ["SFT", "DPO", "GGUF"],
        "created_at": ago(9060),
        "state_since": ago(8820),
        "finished_at": None,
        "progress": {"stage": "SFT", "done": 412, "total": 520, "unit": "STEPS", "per_s": None, "resent": 0},
        "moving": None,
        "loss": 1.284,
        "lr": 4.1e-5,
        "tok_s": 1940.0,
        "eta_s": 5700,
        "coverage": [],
        "step_s": 0.93,
        "expected_s": {},
        "gpu_busy": None,
        "gpu_memory": None,
        "placement": None,
        "checkpoint_step": 400,
        "box_seen_at": ago(8),
        "out_of_contact_since": None,
        "lease": lease(),
        "cost": "1.06",
        "cost_limit": "8.00",
        "currency": "USD",
        "model_dir": None,
        "verification": "FULL",
        "safety": {"where": "BOX", "safe": False, "text": "no. The model exists nowhere yet", "path": None},
        "loss_deadline": {"at": ago(-50_400), "cause": "CREDIT_ENDS"},
    }
    return cast(JobView, row | given)


HOLD = {
    "reason": "STAGE_FAILED",
    "meaning": "a stage failed on the box",
    "detail": "exit 40",
    "since": ago(600),
    "by": "daemon",
    "advice": "read the log",
    "commands": ["jobctl retry z8h1wr", "jobctl cancel z8h1wr"],
}
MONEY = {
    "machines": 2,
    "unsure": 0,
    "rate": "0.82",
    "cost": "3.26",
    "credit": "31.40",
    "hours_left": 38.0,
    "currency": "USD",
    "as_of": ago(6),
    "problem": None,
}
ATTENTION = {
    "kind": "HELD",
    "urgent": True,
    "job": "z8h1wr",
    "instance": 1,
    "text": "z8h1wr is HELD: a stage failed on the box: exit 40",
    "hint": "jobctl retry z8h1wr",
}
BYTES = {
    "stage": "GGUF", "done": 4_100_000_000, "total": 6_200_000_000, "unit": "BYTES", "per_s": 93.4e6, "resent": 261_120,
}  # fmt: skip


def reading(*jobs: JobView, **given: Any) -> Jobs:
    row = {"schema": "homeport.jobs/1", "jobs": list(jobs), "money": MONEY, "attention": [ATTENTION]}
    return cast(Jobs, row | given)


THREE = reading(
    job(),
    job(id="m2x9ab", name="a-rather-long-name", state="GGUF", activity="DOWNLOADING", progress=BYTES, eta_s=None),
    job(id="z8h1wr", name="law-dpo", state="DPO", hold=HOLD, progress=None, eta_s=None),
)


def test_status_in_80_columns() -> None:
    """State, progress, rate, cost and time left of every job; then the money; then what needs a person."""
    assert jobs_screen.screen(THREE, Look(width=80), NOW) + "\n" == STATUS


DROPPED = ["AGE", "UTIL", "GPU", "LOSS", "ETA", "$/H"]


def test_no_row_is_wider_than_the_terminal() -> None:
    """Columns go before rows wrap, always in the same order; at no width is a row too long."""
    titles = {}
    for width in range(64, 140):
        lines = jobs_screen.screen(THREE, Look(width=width), NOW).splitlines()
        assert max(map(len, lines)) <= width
        titles[width] = lines[0].split()

    dropped = [[t for t in DROPPED if t not in titles[width]] for width in sorted(titles)]
    assert all(gone == DROPPED[: len(gone)] for gone in dropped)
    assert dropped[-1] == []


def test_an_empty_status_says_where_to_begin() -> None:
    """Nothing stored and nothing rented is one line with the next command."""
    idle = MONEY | {"machines": 0, "rate": "0.00"}

    text = jobs_screen.screen(reading(money=idle, attention=[]), Look(), NOW)

    assert text == "No jobs. Nothing is being rented. $0.00/h.   Start with: jobctl demo"


def test_a_machine_without_a_job_is_never_hidden_by_an_empty_table() -> None:
    """No job, but something bills: the money line is there."""
    assert "Renting 2 machines" in jobs_screen.screen(reading(), Look(), NOW)


def test_an_empty_table_does_not_hide_a_silent_market() -> None:
    """That nothing is rented is then the word of a database that may be new."""
    idle = MONEY | {"machines": 0, "rate": "0.00", "problem": "no answer"}

    assert "The market cannot be asked: no answer." in jobs_screen.screen(
        reading(money=idle, attention=[]), Look(), NOW
    )


def test_what_nobody_knows_is_no_zero() -> None:
    """Straight from the market, what a machine has cost is not known; `$0.00 so far` would be a lie."""
    rows = [lease(lease=0, cost="0")]
    unknown = cast(Leases, {"schema": "", "leases": rows, "money": MONEY | {"cost": "0"}, "attention": []})

    text = leases_screen.screen(unknown, Look(width=120), NOW, everything=False)

    assert "so far" not in text and "0.00" not in text.splitlines()[1].split()


PAGE = {
    "schema": "homeport.job/1",
    "job": job(),
    "moves": [
        {"state": "QUEUED", "at": ago(9060)},
        {"state": "PROVISIONED", "at": ago(9046)},
        {"state": "SFT", "at": ago(8800)},
    ],
    "recent": [
        {
            "id": 1,
            "at": ago(300),
            "kind": "lease.status",
            "by": "daemon",
            "job": "k7f3qd",
            "lease": 19,
            "body": {"status": "running"},
        },
    ],
    "losses": [2.0, 1.8, 1.5, 1.284],
    "scores": [],
    "delivery": [],
    "money": MONEY,
}


def page(**given: Any) -> JobPage:
    return cast(JobPage, PAGE | {"job": job(**given)})


def test_show_in_80_columns() -> None:
    """States with their durations, what trains, whether the model is safe, machine, money, past and next commands."""
    assert job_screen.screen(page(), Look(width=80), NOW) + "\n" == SHOW


def test_show_of_a_held_job_leads_to_its_two_commands() -> None:
    """The reason, since when, the advice, and the commands that end the hold, never broken at a line's end."""
    text = job_screen.screen(page(hold=HOLD), Look(width=40), NOW)

    assert "jobctl retry z8h1wr\n" in text
    assert "jobctl cancel z8h1wr" in text
    assert "by daemon" in text.replace("\n            ", " ")


def test_show_says_that_a_destroy_is_not_confirmed() -> None:
    """Accepted is not gone: the price goes on being named. No hold is suggested, which is refused by then."""
    text = job_screen.screen(page(lease=lease(destroy_requested=ago(60))), Look(), NOW)

    assert "NOT confirmed, may bill $0.41/h" in text
    assert "jobctl hold" not in text and "jobctl wait k7f3qd" in text


def test_show_warns_of_rows_that_are_never_trained() -> None:
    """What was read, kept, trained and cut; and the arithmetic where fewer are trained than kept."""
    (counted,) = coverage(
        {"sft": 15_300}, {"kept": {"SFT": 15_290}, "truncated": {"SFT": 4}, "steps": {"SFT": 330}}, 32
    )

    text = job_screen.screen(page(coverage=[coverage_view(counted)]), Look(width=160), NOW)

    assert "Rows        SFT: 15,300 read, 15,290 kept, 10,560 trained at least once, 4 cut at max_length\n" in text
    assert (
        "! 10 of 15,300 SFT rows have no answer left within max_length; 330 SFT steps of 32 rows reach 10,560" in text
    )
    assert "of 15,290: 4,730 rows are never trained" in text


def test_show_sets_what_is_expected_beside_the_truth() -> None:
    """A step and each stage of the spec's `expect`, with what they take here; what has not begun stands alone."""
    text = job_screen.screen(page(expected_s={"step": 4.4, "sft": 1500, "dpo": 480}), Look(width=120), NOW)

    assert "Expected    4.4 s a step, here 0.93 s; SFT 25m00s, here 2h26m so far; DPO 8m00s\n" in text


def test_show_of_a_download_says_how_fast_and_how_long() -> None:
    """Bytes, MB/s, what was sent again, and the end of the download."""
    text = job_screen.screen(page(state="GGUF", activity="DOWNLOADING", progress=BYTES, eta_s=22), Look(), NOW)

    assert "here 4.1/6.2 GB   93.4 MB/s   261.1 kB sent again" in text
    assert "the download ends in about 22s" in text


UP = {"stage": "UPLOAD", "done": 3_000_000, "total": 12_000_000, "unit": "BYTES", "per_s": 1.5e6, "resent": 0}
DOWN = UP | {"stage": "MIRROR", "resent": 261_120}


def test_an_upload_and_a_checkpoint_coming_home_say_how_far_they_are() -> None:
    """Both screens; an upload fills the job's own columns, a checkpoint stands beside its steps."""
    setting_up = job(state="QUEUED", activity="SETTING_UP", progress=None, moving=UP, eta_s=None, loss=None)
    training = job(id="m2x9ab", moving=DOWN)

    status = jobs_screen.screen(reading(setting_up, training), Look(width=120), NOW)
    shown = job_screen.screen(page(moving=DOWN), Look(), NOW)

    row, _, beside = status.splitlines()[1:4]
    assert "██░░░░░░ 3.0/12.0 MB" in row and " 6s " in row
    assert beside == "m2x9ab: comes home: 3.0/12.0 MB   1.5 MB/s   261.1 kB sent again   6s left"
    assert "comes home: 3.0/12.0 MB   1.5 MB/s   261.1 kB sent again   6s left\n" in shown
    assert "step 412/520" in shown


def test_a_transfer_by_hand_says_what_it_waits_for() -> None:
    """The machine hashes for minutes before the first byte; then bytes, MB/s, the end, and what was sent again."""
    hashing = {"done": 0, "total": 0, "resent": 0, "per_s": 0, "eta_s": None, "seconds": 184.0}
    moving = {"done": 4_100_000_000, "total": 6_200_000_000, "resent": 261_120, "per_s": 93_400_000, "eta_s": 22}

    told = [bring.progress(cast(Transfer, seen), Look()) for seen in (hashing, moving)]

    assert told == [
        "reading and hashing on the machine before anything moves, 3m04s",
        "█████░░░ 4.1 GB of 6.2 GB   93.4 MB/s   22s left   261.1 kB sent again",
    ]


def test_show_says_how_busy_the_cards_are() -> None:
    """Beside the last report stands what the machine itself says of its cards."""
    text = job_screen.screen(page(gpu_busy=97.0, gpu_memory=61.4), Look(), NOW)

    assert " ago   GPU 97% busy, memory 61% full\n" in text


def test_show_says_how_the_cards_are_used() -> None:
    """What the machine decided of several cards stands with its reason; where nothing was to decide, nothing does."""
    told = "ddp: 2 processes train what one trains, in a trial"

    assert f"\nPlacement   {told}\n" in job_screen.screen(page(placement=told), Look(), NOW)
    assert "Placement" not in job_screen.screen(page(), Look(), NOW)


def test_show_says_whether_the_model_is_better() -> None:
    """Once the model was scored, each comparison stands on a line of its own under one label."""
    told = ["better than owner/base on 400 held-out rows", "not measurably better than v1-jabcde"]
    text = job_screen.screen(cast(JobPage, page() | {"scores": told}), Look(), NOW)

    assert f"Is it better?  {told[0]}\n            {told[1]}" in text


def test_show_of_a_job_without_dpo_has_no_dpo() -> None:
    """The line of states is that of this job."""
    assert "DPO" not in job_screen.screen(page(stages=["SFT", "GGUF"]), Look(), NOW)


def test_leases_hide_what_is_gone() -> None:
    """Machines that may bill are listed; the others on request."""
    rows = [lease(), lease(instance=7, state="GONE")]
    both = cast(Leases, {"schema": "", "leases": rows, "money": MONEY, "attention": []})

    short = leases_screen.screen(both, Look(), NOW, everything=False)
    whole = leases_screen.screen(both, Look(), NOW, everything=True)

    assert ("GONE" in short, "GONE" in whole) == (False, True)


@pytest.mark.parametrize("colour", [False, True])
def test_colour_only_where_it_is_wanted(colour: bool) -> None:
    """Without colour no escape byte is in any screen; with it, there is."""
    look = Look(colour=colour)
    screens = jobs_screen.screen(THREE, look, NOW), job_screen.screen(page(hold=HOLD), look, NOW)

    assert all(("\x1b" in text) is colour for text in screens)


def test_terminals_without_block_characters() -> None:
    """An ASCII terminal gets bars and curves of ASCII."""
    look = Look(blocks=False)
    steps = [cast(Metric, {"attempt": 1, "stage": "SFT", "step": n, "body": {"loss": 2.0 - n / 10}}) for n in range(9)]

    texts = (
        jobs_screen.screen(THREE, look, NOW),
        job_screen.screen(page(), look, NOW),
        metrics_screen.plot(steps, "loss", look),
    )

    assert [text.isascii() for text in texts] == [True] * 3


def test_plot_of_an_unknown_figure_names_the_known_ones() -> None:
    """A misspelt figure is answered with what there is."""
    steps = [cast(Metric, {"attempt": 1, "stage": "SFT", "step": 1, "body": {"loss": 2.0, "grad_norm": 0.4}})]

    assert metrics_screen.plot(steps, "los", Look()) == "no step reports 'los'; there are: grad_norm, loss"


STATUS = """\
JOB     NAME          STATE               PROGRESS              $/H  COST    ETA
k7f3qd  support-bot   SFT                 ██████░░ 412/520     0.41  1.06  1h35m
m2x9ab  a-rather-lo…  GGUF > downloading  █████░░░ 4.1/6.2 GB  0.41  1.06
z8h1wr  law-dpo       DPO (HELD)          exit 40              0.41  1.06    you

Renting 2 machines, $0.82/h, $3.26 so far. Balance $31.40 (1d14h at this rate).
Checked 6s ago.
! z8h1wr is HELD: a stage failed on the box: exit 40
  Try: jobctl retry z8h1wr
"""

SHOW = """\
support-bot  (k7f3qd)   SFT   attempt 1
  Qwen/Qwen3-4B-Instruct
  QUEUED 14s > PROVISIONED 4m06s > [SFT 2h26m] > DPO > GGUF > DOWNLOADED >
  VERIFIED > DESTROYED
  step 412/520   loss 1.284 █▆▃▁   lr 4.1e-05   1,940 tok/s
  last report 8s ago
Model safe here?  no. The model exists nowhere yet
Lost after  22 Sep 04:13: the account's credit ends at this rate
Machine     lease 19, instance 29481133, RTX 4090, LIVE, running, util 97%,
            contract to 21 Oct 14:13
Money       $0.41/h   so far $1.06   cap $8.00
Finish      SFT ends in about 1h35m
Recent      14:08  lease.status  status=running
Next        jobctl logs k7f3qd -f   jobctl metrics k7f3qd --plot loss
            jobctl hold k7f3qd
"""


def test_choices_of_gpus():
    """One row a way, with what speaks for it; the job file's own is marked."""

    def choice(gpus: int, placement: str, training: float, hours: float, cost: str, *marks: str, asked: bool = False):
        return {
            "gpus": gpus, "placement": placement, "training_hours": training, "hours": hours, "cost": cost,
            "measured": gpus <= 2, "asked": asked, "marks": list(marks),
        }  # fmt: skip

    found = plan_screen.choices(
        [
            choice(1, "single", 0.2, 0.8, "1.72", "cheapest", "knee", asked=True),
            choice(2, "ddp", 0.11, 0.71, "3.01", "fastest"),
        ],
        Look(width=80, colour=False),
    )

    assert found == [
        "GPUS  PLACEMENT  TRAINING  WHOLE JOB   COST",
        "   1  single       12m00s     48m00s  $1.72  cheapest, knee, this job file",
        "   2  ddp           6m36s     42m36s  $3.01  fastest",
    ]
