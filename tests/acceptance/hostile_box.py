"""Boxes that lie or break: one deed a row, done around one module of the payload. Standard library only.

`launcher` writes a box's interpreter: the real one, but around each module of MODULES this file is run in the box's
root, and the name of the job chooses the deed. So many jobs with many deeds share one market and one daemon.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shlex import quote

MODULES = ("preflight", "prepare", "dpo", "manifest", "run")
UNFIT = "unfit"  # beside the launcher: how many more machines fail their preflight
GO = "go-"  # beside the launcher, with a job's name: a module that dawdles goes on
PATIENCE_S = 600.0

TEN_TERABYTES = 10 << 40
ENDLESS = 3 << 20  # bytes of a line that does not end; more than one look reads

RUN, OUT = Path("run"), Path("run/out")
MANIFEST = RUN / "manifest.json"


def launcher(folder: Path, python: Path) -> Path:
    """The interpreter of hostile boxes; `folder` is also where deeds find the models they put in place of others."""
    cases = "|".join(f'*"{module} "*' for module in MODULES)
    path = folder / "python"
    path.write_text(
        "#!/bin/sh\n"
        f'deed() {{ {quote(str(python))} -P {quote(__file__)} {quote(str(folder))} "$@"; }}\n'
        f'real() {{ {quote(str(python))} "$@"; }}\n'
        f'case "$* " in {cases})\n'
        '    deed before "$@"; real "$@"; code=$?\n'
        '    deed after "$@"; forged=$?\n'
        '    [ "$forged" = 0 ] && exit "$code"; exit "$forged" ;;\n'
        "esac\n"
        f'exec {quote(str(python))} "$@"\n'
    )
    path.chmod(0o755)
    return path


# -- the model, before it is hashed: the manifest fits what lies there


def model() -> Path:
    (gguf,) = OUT.glob("*.gguf")
    return gguf


def change(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def deed(folder: Path) -> None:
        model().write_bytes(edit(model().read_bytes()))

    return deed


def swap(name: str) -> Callable[[Path], None]:
    """Another model in its place."""

    def deed(folder: Path) -> None:
        model().write_bytes((folder / f"{name}.gguf").read_bytes())

    return deed


def zeros(content: bytes) -> bytes:
    """The last 256 KiB were never written."""
    return content[: -(256 << 10)] + bytes(256 << 10)


def flip(content: bytes) -> bytes:
    return content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:]


# -- the manifest and the other things a box says


def forge(**fields: object) -> Callable[[Path], None]:
    """The GGUF's entry in the manifest, changed."""

    def deed(folder: Path) -> None:
        manifest = json.loads(MANIFEST.read_text())
        entry = next(file for file in manifest["files"] if file["role"] == "gguf")
        entry.update(fields)
        MANIFEST.write_text(json.dumps(manifest))

    return deed


def delete(folder: Path) -> None:
    model().unlink()


def link(folder: Path) -> None:
    """The adapter's folder leads out of the box."""
    adapter = OUT / "adapter"
    adapter.rename(RUN / "moved")
    adapter.symlink_to("/etc")


def sparse(folder: Path) -> None:
    """Ten terabytes of nothing in the model's place, and a manifest that says so in one chunk."""
    with open(model(), "r+b") as file:
        file.truncate(TEN_TERABYTES)
    manifest = json.loads(MANIFEST.read_text())
    entry = next(file for file in manifest["files"] if file["role"] == "gguf")
    entry.update(size=TEN_TERABYTES, chunks=entry["chunks"][:1])
    MANIFEST.write_text(json.dumps(manifest | {"chunk_size": TEN_TERABYTES}))


def another_done(folder: Path) -> None:
    """DPO is done before it begins, says a marker of somebody else's stage; DPO waits, so that it is read."""
    (sft,) = RUN.glob("stages/*/done.json")
    (dpo,) = (started.parent for started in RUN.glob("stages/*/started.json") if started.parent != sft.parent)
    (dpo / "done.json").write_text(json.dumps(json.loads(sft.read_text()) | {"nonce": "0000000000"}))
    dawdle(folder)


def of_another_job(folder: Path) -> None:
    manifest = json.loads(MANIFEST.read_text())
    MANIFEST.write_text(json.dumps(manifest | {"job": "zzzzzz"}))


def noise(folder: Path) -> None:
    """Escapes in the log and rubbish among the events, once, when the work is done; the model is good."""
    if (RUN / "noisy").exists():
        return
    (RUN / "noisy").touch()
    deadline = time.monotonic() + PATIENCE_S
    while len(list(RUN.glob("stages/*/done.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    with open(RUN / "log.txt", "ab") as log:
        log.write(b"\x1b[2J\x1b]0;owned\x07 noisy \xff\xfe\r\x1b[31mred\n")
    rubbish = [b"\x00\xff not json", b"[]", b"7", b'"step"', b"{}", b'{"kind": "step"}',
               b'{"kind": "step", "t": "x", "stage": [], "step": {}}',
               b'{"kind": "step", "t": 1, "stage": "SFT", "step": 1e999}', b"[" * 5000, b"9" * 70_000]  # fmt: skip
    with open(RUN / "events.jsonl", "ab") as events:
        events.write(b"\n".join(rubbish) + b"\n" + b"8" * ENDLESS)
    with open(RUN / "log.txt", "ab") as log:
        log.write(b"endless" + b"\x1b[31m" * (ENDLESS // 5))


def say(**fields: object) -> Callable[[Path], None]:
    """A last line on stdout that differs from what prepare said."""

    def deed(folder: Path) -> None:
        print(json.dumps(json.loads((RUN / "prepared.json").read_text()) | fields), flush=True)

    return deed


def future(folder: Path) -> None:
    """The runner of a later release, whose status we cannot know."""
    status = json.loads((RUN / "status.json").read_text()) | {"contract": 99}
    wrapped = {"boot_id": "x", "alive": True, "status": status, "log_size": 0, "events_size": 0}
    print(json.dumps(status | wrapped), flush=True)  # what `run start` answers, and what `run status` does


# -- the data, between its upload and prepare


def data(kind: str) -> Path:
    job = json.loads((RUN / "job.json").read_text())
    return Path(job[f"{kind}_data"]["path"])


def lose_a_row(folder: Path) -> None:
    lines = data("sft").read_bytes().splitlines(keepends=True)
    data("sft").write_bytes(b"".join(lines[:-1]))


def garble_a_row(folder: Path) -> None:
    lines = data("dpo").read_bytes().splitlines(keepends=True)
    lines[2] = b'{"prompt": "half a r\n'
    data("dpo").write_bytes(b"".join(lines))


def announce_more(folder: Path) -> None:
    file = RUN / "job.json"
    job = json.loads(file.read_text())
    job["integration"]["sft_rows"] += 1
    file.write_text(json.dumps(job))


# -- time


def dawdle(folder: Path) -> None:
    """Until the test says go, or the daemon says stop."""
    go = folder / f"{GO}{job_name()}"
    deadline = time.monotonic() + PATIENCE_S
    while not go.exists() and not (RUN / "stop").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def job_name() -> str:
    """'' before the daemon has said which job it is."""
    file = RUN / "job.json"
    return str(json.loads(file.read_text())["name"]) if file.exists() else ""


Deed = Callable[[Path], None]
DEEDS: dict[tuple[str, str], dict[str, Deed]] = {
    ("before", "prepare"): {
        "lost-row": lose_a_row,
        "bad-row": garble_a_row,
        "announced": announce_more,
        "prepares-long": dawdle,
    },
    ("after", "prepare"): {
        "no-line": say(line=""),
        "wrong-line": say(line="INTEGRATION forged: 1 SFT, 1 DPO"),
        "other-counts": say(sft_rows=1, dpo_rows=1),
    },
    ("before", "dpo"): {
        **{name: dawdle for name in ("steered", "cancelled", "abandoned", "priced")},
        "forged-done": another_done,
    },
    ("before", "manifest"): {
        "cut-byte": change(lambda content: content[:-1]),
        "cut-half": change(lambda content: content[: len(content) // 2]),
        "longer": change(lambda content: content + bytes(64)),
        "zeros": change(zeros),
        "tiny-model": swap("tiny"),
        "foreign-model": swap("opposite"),
        "base-model": swap("base"),
    },
    ("after", "manifest"): {
        "flipped": change(flip),
        "shorter-than-said": change(lambda content: content[:-1]),
        "longer-than-said": change(lambda content: content + b"\0"),
        "deleted": delete,
        "linked": link,
        "path-up": forge(path="run/out/../../../../escaped.gguf"),
        "path-absolute": forge(path="/tmp/escaped.gguf"),
        "path-sibling": forge(path="run/elsewhere.gguf"),
        "ten-terabytes": sparse,
        "other-job": of_another_job,
    },
    ("after", "run"): {"future-status": future, "noise": noise},
}


def main(folder: Path, moment: str, module: str) -> int:
    """The deed of this job at this moment. The exit code: not 0 when the module is to have failed with it."""
    if module == "preflight":
        return unfit(folder) if moment == "after" else 0
    deed = DEEDS.get((moment, module), {}).get(job_name())
    if deed is not None:
        deed(folder)
    return 0


def unfit(folder: Path) -> int:
    """Preflight fails on as many machines as the test said."""
    left = folder / UNFIT
    count = int(left.read_text()) if left.exists() else 0
    if count <= 0:
        return 0
    left.write_text(str(count - 1))
    print(json.dumps({"ok": False, "checks": [{"name": "matmul cuda:0", "ok": False, "detail": "wrong product"}]}))
    sys.stdout.flush()
    return 30


if __name__ == "__main__":
    folder, moment, *arguments = sys.argv[1:]
    # What is played follows the tape's path, the rest follows -m.
    module = arguments[3] if arguments[0] == "-P" else arguments[1].removeprefix("remote_payload.")
    sys.exit(main(Path(folder), moment, module))
