"""jobctl against a real server and a real database: what is printed, what is asked of the daemon, how it ends."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scripted import CANARY, PLAN, Run, Scripted, a_job_file, running
from stored import HOUR, NOW, Stored

from daemon import platform
from daemon.artifacts import tiny
from daemon.cli import bring
from daemon.errors import CredentialsRefused, HomeportError, NothingFits, Refused, SpecError
from daemon.settings import Settings


def test_submit_sends_the_text_its_folder_and_an_id_of_both(run: Run, commands: Scripted, tmp_path: Path) -> None:
    """The same file submitted twice carries the same request id, so that it is one job; --again carries another."""
    file = a_job_file(tmp_path)

    first, second, third = run("submit", file), run("submit", file), run("submit", file, "--again")

    calls = [call for call in commands.calls if call[0] == "submit"]
    assert [call[1:4] for call in calls] == [("version: 1\nname: support-bot\n", file, str(tmp_path))] * 3
    assert calls[0][4] == calls[1][4] != calls[2][4]
    assert [first.exit_code, second.exit_code, third.exit_code] == [0, 0, 0]
    assert "k7f3qd  support-bot is queued" in first.stdout


def test_submit_says_when_it_is_the_same_job(run: Run, commands: Scripted, stored: Stored, tmp_path: Path) -> None:
    """A second submit of one file is no second job, and says how to get one."""
    stored.job("k7f3qd")
    commands.answers["submit"] |= {"created": False}

    result = run("submit", a_job_file(tmp_path))

    assert "still one job" in result.stdout
    assert "--again" in result.stdout


def test_submit_and_wait_ends_with_the_job(run: Run, commands: Scripted, stored: Stored, tmp_path: Path) -> None:
    """`submit --wait` stays until the job is destroyed and says where the model is."""
    stored.job("k7f3qd", state="DESTROYED", manifest_sha256="m", finished_at=NOW)
    stored.receipt("k7f3qd", tmp_path / "model", {"a.gguf": b"weights"})

    result = run("submit", a_job_file(tmp_path), "--wait")

    assert result.exit_code == 0
    assert "Model safe here?  yes." in result.stderr


ERRORS = [
    (SpecError(["job.yaml:3: lr: not a number", "job.yaml:9: machin: unknown key"], hint="jobctl plan"), 2),
    (CredentialsRefused("the market refuses the key", hint="jobctl doctor"), 5),
    (NothingFits("no offer fits", hint="jobctl offers --why"), 6),
    (Refused("a destroy is unresolved", hint="jobctl show k7f3qd"), 1),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_end_with_their_code(
    run: Run, commands: Scripted, tmp_path: Path, error: HomeportError, code: int
) -> None:
    """Every objection has a line of its own on standard error, then the next command; standard output stays empty."""
    commands.answers["submit"] = error

    result = run("submit", a_job_file(tmp_path))

    assert result.exit_code == code
    assert result.stdout == ""
    assert [line for line in result.stderr.splitlines() if line.startswith("Error: ")] == [
        f"Error: {line}" for line in str(error).splitlines()
    ]
    assert f"Try:   {error.hint}" in result.stderr


def test_plan_shows_steps_money_and_machines(run: Run, commands: Scripted, tmp_path: Path) -> None:
    """The plan says what is derived: rows and steps, cost and reserve, the best offer, and why others are not taken."""
    result = run("plan", a_job_file(tmp_path), "--why")

    assert result.exit_code == 0
    for part in (
        "SFT 15300 rows in 330 steps",
        "15,300: 4,740 rows are never trained",
        "about $1.72",
        "$0.15 reserved",
        "download 19m20s of rent after the GGUF, $5.15, 6.2 GB to fetch\n",
        "rebuild 3m12s of rent after the GGUF, $0.84, 0 B to fetch; taken: the job file says so",
        "RTX 4090",
        "ends in 3 h",
    ):
        assert part in result.stdout


def test_plan_that_fits_nothing_or_cannot_be_verified_here(run: Run, commands: Scripted, tmp_path: Path) -> None:
    """No offer is exit 6; a workstation that cannot verify is exit 1, since submit would refuse."""
    commands.answers["plan"] = PLAN | {"offers": [], "hours": None, "cost": None}
    assert run("plan", a_job_file(tmp_path)).exit_code == 6

    commands.answers["plan"] = PLAN | {"problems": ["llama-cpp-python is not installed: pip install homeport[verify]"]}
    assert run("plan", a_job_file(tmp_path)).exit_code == 1


def test_status_and_show_over_the_socket(run: Run, commands: Scripted, stored: Stored) -> None:
    """Both name the job, its state, progress, rate and cost, and answer whether the model is safe."""
    stored.job("k7f3qd", name="support-bot", state="SFT")
    stored.lease("k7f3qd")
    stored.steps("k7f3qd", "SFT", 393, 412, 520)
    stored.listing()

    status, show = run("status"), run("show", "support-bot")

    assert (status.exit_code, show.exit_code) == (0, 0)
    assert "412/520" in status.stdout
    assert "Renting 1 machine, $0.40/h, $0.4" in status.stdout
    assert "Balance $31.40 (3d6h at this rate)." in status.stdout
    assert "Model safe here?  no. The model exists nowhere yet" in show.stdout
    assert "[SFT" in show.stdout


def test_without_the_daemon_status_reads_the_database(run: Run, stored: Stored) -> None:
    """With the daemon down the machines that may bill are still listed, with the age of the figures; exit 4."""
    stored.job("k7f3qd", name="support-bot", state="SFT")
    stored.lease("k7f3qd")
    stored.listing(at=NOW - 3 * HOUR)

    for verb in (("status",), ("show", "k7f"), ("leases",)):
        result = run(*verb)

        assert result.exit_code == 4
        assert re.search("not running; figures are 3h0.m old and 1 machine may be billing", result.stdout)


def test_without_daemon_and_database_there_is_nothing_to_read(run: Run, config: Settings) -> None:
    """On a fresh computer a reading ends with 4 and the command that starts the daemon."""
    result = run("status")

    assert result.exit_code == 4
    assert "Try:   jobctl up" in result.stderr


@pytest.mark.parametrize("verb", [("status",), ("show", "k7f"), ("leases",), ("logs", "k7f"), ("offers",), ("doctor",)])
def test_json_is_all_there_is_on_standard_output(
    run: Run, commands: Scripted, stored: Stored, verb: tuple[str]
) -> None:
    """--json prints one object that names its schema, and nothing else."""
    stored.job("k7f3qd")
    stored.listing()

    result = run(*verb, "--json")

    assert json.loads(result.stdout)["schema"].startswith("homeport.")


def test_metrics_as_json_is_one_object_a_step(run: Run, commands: Scripted, stored: Stored) -> None:
    """Every step once, in order, across pages of the reading."""
    stored.job("k7f3qd", state="SFT")
    stored.steps("k7f3qd", "SFT", 1, 30, 30)

    result = run("metrics", "k7f", "--json")

    assert [json.loads(line)["step"] for line in result.stdout.splitlines()] == list(range(1, 31))


CHECKS = [
    pytest.param({}, {}, 0, id="nothing wrong"),
    pytest.param({"hold_reason": "STAGE_FAILED", "hold_since": NOW}, {}, 11, id="held"),
    pytest.param({}, {"job_id": None}, 11, id="orphan"),
    pytest.param({"state": "DESTROYED"}, {}, 11, id="reappeared"),
    pytest.param({}, {"state": "GONE"}, 0, id="gone"),
]


@pytest.mark.parametrize(("job", "lease", "code"), CHECKS)
def test_check_is_11_when_something_needs_a_person(
    run: Run, commands: Scripted, stored: Stored, job: dict[str, Any], lease: dict[str, Any], code: int
) -> None:
    """--check tells a script what the screen tells a person."""
    stored.job("k7f3qd", **job)
    stored.lease(**{"job": "k7f3qd"} | lease)

    assert run("status", "--check").exit_code == code


WAITS = [
    ({"state": "SFT"}, "PROVISIONED", 0),
    ({"state": "DESTROYED"}, "DESTROYED", 0),
    ({"state": "SFT"}, "DESTROYED", 7),
    ({"state": "FAILED"}, "DESTROYED", 8),
    ({"state": "FAILED"}, "FAILED", 0),
    ({"state": "DESTROYED"}, "CANCELLED", 1),
    ({"state": "CANCELLED"}, "VERIFIED", 9),
    ({"state": "ABANDONED"}, "VERIFIED", 9),
    ({"state": "DOWNLOADED", "hold_reason": "VERIFY_FAILED", "hold_since": NOW}, "VERIFIED", 10),
    ({"state": "DOWNLOADED", "hold_reason": "NOT_VERIFIED", "hold_since": NOW}, "VERIFIED", 10),
    ({"state": "SFT", "hold_reason": "BUDGET", "hold_since": NOW}, "VERIFIED", 11),
    ({"state": "VERIFIED", "hold_reason": "ASK_DESTROY", "hold_since": NOW}, "VERIFIED", 0),
]


@pytest.mark.parametrize(("job", "wanted", "code"), WAITS)
def test_wait_ends_as_the_job_does(
    run: Run, commands: Scripted, stored: Stored, job: dict[str, Any], wanted: str, code: int
) -> None:
    """Reached, timed out, failed, ended by wish, not verified, held: each has its exit code."""
    stored.job("k7f3qd", **job)

    assert run("wait", "k7f", "--for", wanted, "--timeout", "0.1s").exit_code == code


@pytest.mark.parametrize("rented", [True, False], ids=["rented", "no job"])
@pytest.mark.parametrize("live", [True, False], ids=["daemon", "database"])
def test_a_full_disk_needs_a_person(
    run: Run, config: Settings, stored: Stored, monkeypatch: pytest.MonkeyPatch, live: bool, rented: bool
) -> None:
    """Nothing that is decided can be written down, so nothing is done: status and leases say it, and --check is 11."""
    if rented:
        stored.job("k7f3qd", state="DPO")
        stored.lease("k7f3qd")
    with running(config, Scripted()) if live else nullcontext():
        assert run("leases", "--check").exit_code == (0 if live else 4)

        monkeypatch.setattr(platform, "free_bytes", lambda folder: 4096 if folder == config.paths.state else 1 << 40)

        for verb in ("status", "leases"):
            result = run(verb, "--check")
            said = " ".join(result.stdout.split())
            assert result.exit_code == 11
            assert "takes no more writes: no limit of cost or time is enforced" in said
            assert f"df -h {config.paths.state}" in said


def test_references(run: Run, commands: Scripted, stored: Stored) -> None:
    """Id, unique prefix, name and @last mean a job; none and several are exit 3, and several are listed."""
    stored.job("k7f3qd", name="twin", state="FAILED", created_at=NOW - 2 * HOUR)
    stored.job("k7m2x9", name="twin", state="FAILED", created_at=NOW - 1 * HOUR)

    assert [run("show", ref).exit_code for ref in ("k7f3qd", "k7f", "@last", "zzz", "")] == [0, 0, 0, 3, 3]
    for ref in ("k7", "twin"):
        result = run("show", ref)
        assert result.exit_code == 3
        assert "k7f3qd (twin, FAILED)" in result.stderr
        assert "k7m2x9 (twin, FAILED)" in result.stderr


def test_last_is_the_job_submitted_last(run: Run, commands: Scripted, stored: Stored) -> None:
    """Also when the clock was set back between two jobs: what `@last` cancels is the newest one."""
    stored.job("k7f3qd", created_at=NOW)
    stored.job("k7m2x9", created_at=NOW - 2 * HOUR)

    run("hold", "@last")

    assert [call[:2] for call in commands.calls] == [("hold", "k7m2x9")]
    assert [job["id"] for job in json.loads(run("status", "--json").stdout)["jobs"]] == ["k7m2x9", "k7f3qd"]


@pytest.mark.parametrize("state", ["DESTROYED", "FAILED", "CANCELLED", "ABANDONED"])
def test_following_a_log_ends_with_its_job(
    run: Run, commands: Scripted, stored: Stored, config: Settings, state: str
) -> None:
    """With the last line, and 0: whoever follows a job in a script goes on after it."""
    stored.job("k7f3qd", state=state)
    log = config.paths.job_folders / "k7f3qd" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\nstep 2\n")

    result = run("logs", "k7f", "-f", "-n", "1")

    assert (result.exit_code, result.stdout) == (0, "step 2\n")


def test_a_log_is_followed_while_its_job_goes_on(
    run: Run, commands: Scripted, stored: Stored, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written between two looks is shown, also what comes with the end."""
    stored.job("k7f3qd", state="SFT")
    log = config.paths.job_folders / "k7f3qd" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\n")
    written = iter(["step 2\n", "step 3\n", ""])

    def meanwhile(seconds: float) -> None:
        with log.open("a") as file:
            file.write(text := next(written))
        if text == "step 3\n":
            with closing(sqlite3.connect(stored.path)) as db, db:
                db.execute("UPDATE jobs SET state = 'DESTROYED'")

    monkeypatch.setattr("daemon.cli.follow.time.sleep", meanwhile)

    assert run("logs", "k7f", "-f").stdout == "step 1\nstep 2\nstep 3\n"


def test_an_unfinished_job_is_meant_before_finished_ones_of_its_name(
    run: Run, commands: Scripted, stored: Stored
) -> None:
    """A name that was used before means the job that runs now."""
    stored.job("k7f3qd", name="twin", state="FAILED")
    stored.job("k7m2x9", name="twin", state="SFT")

    assert "(k7m2x9)" in run("show", "twin").stdout


def test_abandon_says_what_is_lost_and_wants_the_id(run: Run, commands: Scripted, stored: Stored) -> None:
    """Without a terminal the instance id is a flag; a wrong one changes nothing."""
    stored.job("k7f3qd")

    asked, wrong, right = (run("abandon", "k7f", *flag) for flag in ((), ("--confirm", "7"), ("--confirm", "29481133")))

    assert [asked.exit_code, wrong.exit_code, right.exit_code] == [2, 1, 0]
    assert "the final model (6.2 GB)" in asked.stderr
    assert "--confirm 29481133" in asked.stderr
    assert [call[1:] for call in commands.calls if call[0] == "abandon"] == [("k7f3qd", commands_user(), 29481133)]


def commands_user() -> str:
    import getpass

    return getpass.getuser()


def test_a_discarding_cancel_wants_the_id_too(run: Run, commands: Scripted, stored: Stored) -> None:
    """A plain cancel saves first and asks nothing; --discard loses a model and is confirmed like abandon."""
    stored.job("k7f3qd")

    assert run("cancel", "k7f").exit_code == 0
    assert run("cancel", "k7f", "--discard").exit_code == 2
    assert run("cancel", "k7f", "--discard", "--confirm", "29481133").exit_code == 0
    assert [call[3:] for call in commands.calls if call[0] == "cancel"] == [(False, None), (True, 29481133)]


def test_write_off_wants_the_id_twice(run: Run, commands: Scripted) -> None:
    """A machine is written off only by typing its id again."""
    assert run("write-off", "29481133").exit_code == 2
    assert run("write-off", "29481133", "--confirm", "1").exit_code == 1
    assert run("write-off", "29481133", "--confirm", "29481133").exit_code == 0
    assert [call[0] for call in commands.calls] == ["write_off"]


def test_retry_names_the_stage_as_the_daemon_does(run: Run, commands: Scripted, stored: Stored) -> None:
    """`--from gguf` reaches the daemon as GGUF, no flag as None."""
    stored.job("k7f3qd")

    run("retry", "k7f", "--from", "gguf")
    run("retry", "k7f")

    assert [call[3] for call in commands.calls] == ["GGUF", None]


def test_doctor_reports_each_failure_with_its_cure(run: Run, commands: Scripted, config: Settings) -> None:
    """A key that others can read and a market that does not answer are named with a command; the exit is 1."""
    config.paths.state.chmod(0o700)
    config.paths.ssh_key.write_text("key")
    config.paths.ssh_key.chmod(0o644)
    failed = {"name": "market", "status": "FAIL", "detail": "no answer", "fix": "check the network"}
    commands.answers["doctor"] = {"checks": [failed]}

    result = run("doctor")

    assert result.exit_code == 1
    assert f"Try: chmod go= {config.paths.ssh_key}" in result.stdout
    assert "Try: check the network" in result.stdout


def test_no_secret_is_printed(run: Run, commands: Scripted, stored: Stored, config: Settings, tmp_path: Path) -> None:
    """The key's last four characters are all that any verb shows of a secret."""
    stored.job("k7f3qd")
    verbs = ("status",), ("show", "k7f"), ("leases",), ("doctor",), ("logs", "--daemon"), ("plan", a_job_file(tmp_path))

    printed = "".join((result := run(*verb)).stdout + result.stderr for verb in verbs)

    assert "ends in last" in printed
    assert CANARY not in printed


def test_escape_sequences_of_a_box_stay_harmless(
    run: Run, commands: Scripted, stored: Stored, config: Settings
) -> None:
    """What came from a machine cannot move the cursor, set the title or colour the screen."""
    stored.job("k7f3qd", hold_reason="STAGE_FAILED", hold_detail="\x1b]0;owned\x07 boom", hold_since=NOW)
    log = config.paths.job_folders / "k7f3qd" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\n\x1b[2Jgone\n")

    for verb in (("status",), ("show", "k7f"), ("logs", "k7f"), ("status", "--json")):
        assert "\x1b" not in run(*verb).stdout


def test_verify_needs_no_daemon_and_tells_by_its_exit_code(run: Run, stored: Stored, tmp_path: Path) -> None:
    """A lone GGUF: what was and what was not looked at; cut off it is exit 10; a job without a model is refused."""
    path = tmp_path / "tiny.gguf"
    tiny.write_tiny(path)
    good = run("verify", str(path))
    path.write_bytes(path.read_bytes()[:-1])
    cut = run("verify", str(path), "--json")
    stored.job("k7f3qd", state="SFT")
    without = run("verify", "k7f")

    assert good.exit_code == 0
    assert "L2 structure: passed" in good.stdout and "not run: L1, L3, L5" in good.stdout
    assert cut.exit_code == 10 and json.loads(cut.stdout)["levels"][-1]["name"] == "L2 structure"
    assert without.exit_code == 1 and "no verified model of it is here" in without.stderr


def test_a_job_file_that_is_none(run: Run, commands: Scripted, tmp_path: Path) -> None:
    """Rows in place of the job file: they are not sent, and the daemon is not said to be down."""
    rows = tmp_path / "sft.jsonl"
    rows.write_text('{"text": "a"}\n' * 400_000)

    for verb in ("submit", "plan"):
        result = run(verb, str(rows))
        assert result.exit_code == 2 and f"{rows}: is larger than " in result.stderr
    assert commands.calls == []


def test_a_new_job_of_the_same_file_waits_for_the_end_of_the_old_one(
    run: Run, commands: Scripted, stored: Stored, tmp_path: Path
) -> None:
    """`--again` is refused while a job of that name lives: what ends that is said first."""
    stored.job("k7f3qd", hold_reason="DATA", hold_since=NOW)
    commands.answers["submit"] |= {"created": False}

    living = run("submit", a_job_file(tmp_path)).stdout
    with closing(sqlite3.connect(stored.path)) as db, db:
        db.execute("UPDATE jobs SET state = 'CANCELLED', hold_reason = NULL")
    ended = run("submit", a_job_file(tmp_path)).stdout

    assert "jobctl cancel k7f3qd" in living and "--again" in living
    assert "jobctl cancel" not in ended and "--again" in ended


def test_a_daemon_that_hangs_is_not_said_to_be_down(
    run: Run, stored: Stored, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jobctl up` would find it running."""
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd")
    monkeypatch.setattr("daemon.api.client.READ_S", 0.2)
    listener = platform.listen_unix(config.paths.socket)
    try:
        result = run("status")
    finally:
        listener.close()

    first, second = result.stdout.splitlines()[:2]
    assert "does not answer within 0.2 s" in first and "1 machine may be billing" in first
    assert second == "  Try: jobctl doctor"


def test_a_transfer_as_json_is_made_plain_too() -> None:
    """A name that a machine chose: with the control character that some terminals take for an escape."""
    done = {"files": [{"path": "a\x9b31m.gguf", "size": 1, "sha256": "0"}], "state": "DONE"}
    with CliRunner().isolation() as (out, _, _):
        bring._told(done, as_json=True)

    assert "\x9b" not in out.getvalue().decode()
