"""jobctl against a real server and a real database: what is printed, what is asked of the daemon, how it ends."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scripted import PLAN, Scripted, running
from stored import HOUR, NOW, Stored

from daemon import settings
from daemon.cli.jobctl import jobctl
from daemon.errors import CredentialsRefused, HomeportError, NothingFits, Refused, SpecError
from daemon.settings import Settings

Run = Callable[..., Result]
CANARY = "canary-5d1f0c"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    monkeypatch.setenv("VAST_API_KEY", f"{CANARY}-last")
    monkeypatch.setenv("HF_TOKEN", CANARY)
    return settings.load()


@pytest.fixture
def stored(config: Settings) -> Stored:
    return Stored(config.paths.database)


@pytest.fixture
def commands(config: Settings, stored: Stored) -> Iterator[Scripted]:
    scripted = Scripted()
    with running(config, scripted):
        yield scripted


@pytest.fixture
def run(config: Settings) -> Run:
    def invoke(*args: str, typed: str | None = None) -> Result:
        return CliRunner().invoke(jobctl, args, input=typed, catch_exceptions=False)

    return invoke


def process(config: Settings, *args: str, **options: Any) -> subprocess.Popen[str]:
    """jobctl in a process of its own."""
    command = [sys.executable, "-c", "from daemon.cli import main; main()", *args]
    env = os.environ | {"HOMEPORT_HOME": str(config.paths.state.parent)}
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **options
    )


def a_job_file(folder: Path) -> str:
    file = folder / "job.yaml"
    file.write_text("version: 1\nname: support-bot\n")
    return str(file)


def test_submit_sends_the_text_its_folder_and_an_id_of_both(run: Run, commands: Scripted, tmp_path: Path) -> None:
    """The same file submitted twice carries the same request id, so that it is one job; --again carries another."""
    file = a_job_file(tmp_path)

    first, second, third = run("submit", file), run("submit", file), run("submit", file, "--again")

    calls = [call for call in commands.calls if call[0] == "submit"]
    assert [call[1:4] for call in calls] == [("version: 1\nname: support-bot\n", file, str(tmp_path))] * 3
    assert calls[0][4] == calls[1][4] != calls[2][4]
    assert [first.exit_code, second.exit_code, third.exit_code] == [0, 0, 0]
    assert "k7f3qd  support-bot is queued" in first.stdout


def test_submit_says_when_it_is_the_same_job(run: Run, commands: Scripted, tmp_path: Path) -> None:
    """A second submit of one file is no second job, and says how to get one."""
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
    config.paths.ssh_key.write_text("key")
    config.paths.ssh_key.chmod(0o644)
    failed = {"name": "market", "status": "FAIL", "detail": "no answer", "fix": "check the network"}
    commands.answers["doctor"] = {"checks": [failed]}

    result = run("doctor")

    assert result.exit_code == 1
    assert f"Try: chmod 600 {config.paths.ssh_key}" in result.stdout
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


def test_a_broken_pipe_leaves_no_trace(config: Settings, commands: Scripted, stored: Stored) -> None:
    """`jobctl metrics | head -1` ends without a traceback."""
    stored.job("k7f3qd", state="SFT")
    stored.steps("k7f3qd", "SFT", 1, 300, 300)
    jobctl_process = process(config, "metrics", "k7f", "--json")
    assert jobctl_process.stdout is not None and jobctl_process.stderr is not None

    jobctl_process.stdout.readline()
    jobctl_process.stdout.close()

    assert jobctl_process.stderr.read() == ""
    jobctl_process.wait(20)
    jobctl_process.stderr.close()


def test_ctrl_c_detaches_and_says_how_to_come_back(config: Settings, commands: Scripted, stored: Stored) -> None:
    """Interrupting a wait ends the waiting, not the job: exit 130 and the command that goes on."""
    stored.job("k7f3qd", state="SFT")
    waiting = process(config, "wait", "k7f")
    assert waiting.stderr is not None and waiting.stdout is not None
    assert "k7f3qd  SFT" in waiting.stderr.readline()

    waiting.send_signal(signal.SIGINT)

    assert "Come back with: jobctl wait k7f --for DESTROYED" in waiting.stderr.read()
    assert waiting.wait(20) == 130
    waiting.stderr.close()
    waiting.stdout.close()


class Terminal:
    """jobctl on a terminal of its own: what it writes to the screen, and keys to type."""

    def __init__(self, config: Settings, *args: str) -> None:
        command = [sys.executable, "-c", "from daemon.cli import main; main()", *args]
        env = os.environ | {"HOMEPORT_HOME": str(config.paths.state.parent), "TERM": "xterm"}
        self.screen = ""
        self._fd, child = pty.openpty()
        self.process = subprocess.Popen(command, env=env, stdin=child, stdout=child, stderr=child, close_fds=True)
        os.close(child)

    def wait_for(self, text: str) -> None:
        while text not in self.screen:
            assert self._read(), f"ended before {text!r}: {self.screen}"

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._fd)
        return self.process.wait(20)

    def _read(self) -> bool:
        """Wait for more on the screen; False when jobctl has closed it."""
        if not select.select([self._fd], [], [], 30)[0]:
            self.process.kill()
            pytest.fail(f"nothing for 30 s after: {self.screen}")
        try:
            self.screen += os.read(self._fd, 65536).decode()
        except OSError as error:
            if error.errno != errno.EIO:  # what Linux says when the other end of a terminal is closed
                raise
            return False
        return True


@pytest.mark.parametrize(("typed", "code"), [("29481133\n", 0), ("yes\n", 1), ("\n29481134\n", 1), ("\x04", 130)])
def test_abandon_on_a_terminal_has_the_id_typed(
    config: Settings, commands: Scripted, stored: Stored, typed: str, code: int
) -> None:
    """Neither yes nor Enter nor a near miss gives a model up: only the instance id does."""
    stored.job("k7f3qd")
    terminal = Terminal(config, "abandon", "k7f")

    terminal.wait_for("Type the instance id")
    terminal.type(typed)

    assert terminal.end() == code
    assert [call[0] for call in commands.calls if call[0] == "abandon"] == ["abandon"] * (code == 0)


@pytest.mark.parametrize(("typed", "submitted"), [("y\n", True), ("\n", False), ("n\n", False)])
def test_submit_on_a_terminal_shows_the_plan_and_asks_once(
    config: Settings, commands: Scripted, tmp_path: Path, typed: str, submitted: bool
) -> None:
    """A person sees what it will cost before anything is rented; Enter alone rents nothing."""
    terminal = Terminal(config, "submit", a_job_file(tmp_path))

    terminal.wait_for("Rent and train?")
    assert "about $1.72" in terminal.screen
    terminal.type(typed)
    terminal.end()

    assert ("submit" in [call[0] for call in commands.calls]) is submitted


def test_watching_draws_over_itself_and_ends_politely(config: Settings, commands: Scripted, stored: Stored) -> None:
    """status -w on a terminal redraws in place and in colour; Ctrl-C ends the looking with 130."""
    stored.job("k7f3qd", state="SFT")
    terminal = Terminal(config, "status", "-w")

    terminal.wait_for("\x1b[H\x1b[2J")
    terminal.wait_for("k7f3qd")
    terminal.process.send_signal(signal.SIGINT)

    assert terminal.end() == 130
    assert "\x1b[2mJOB" in terminal.screen
    assert "Come back with: jobctl status -w" in terminal.screen


def test_no_color_is_respected_on_a_terminal(
    config: Settings, commands: Scripted, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR takes every escape byte away."""
    monkeypatch.setenv("NO_COLOR", "1")
    stored.job("k7f3qd")
    terminal = Terminal(config, "status")

    assert terminal.end() == 0
    assert "k7f3qd" in terminal.screen
    assert "\x1b" not in terminal.screen


HEAVY = {"sqlalchemy", "pydantic", "rich", "httpx", "asyncssh", "starlette", "uvicorn", "structlog", "torch", "alembic"}


@pytest.mark.parametrize("verb", [["--help"], ["status"], ["show", "@last"], ["metrics", "@last"]])
def test_looking_imports_nothing_heavy(config: Settings, commands: Scripted, stored: Stored, verb: list[str]) -> None:
    """A verb that only looks is fast because it imports only the standard library and click."""
    stored.job("k7f3qd")
    script = (
        "import sys, atexit, json\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from daemon.cli import main; main()"
    )

    child = subprocess.run([sys.executable, "-c", script, *verb], capture_output=True, text=True, check=True)

    loaded = {name.partition(".")[0] for name in json.loads(child.stderr.splitlines()[-1])}
    assert loaded & HEAVY == set()
