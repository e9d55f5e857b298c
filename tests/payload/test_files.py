"""Events, hashes and the manifest: what the workstation reads of a box."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from payload_box import REPOSITORY, Box

from daemon.artifacts.layout import local_name
from remote_payload import contract, gpu, hashes, manifest, outbox
from remote_payload.contract import CHUNK_SIZE, Exit, Manifest, Role, Stage, StagePlan
from remote_payload.progress import Events, read_from
from remote_payload.script import ScriptFailed

MakeBox = Callable[..., Box]


def test_torn_line_is_cut_off(tmp_path: Path) -> None:
    """A line half written at a kill is never read, and the next writer goes on after the last whole one."""
    events = Events(tmp_path / "events.jsonl", "SFT", "n")
    events.emit("step", step=1)
    with open(events.path, "a") as f:
        f.write('{"v":1,"seq":2,"ki')
    seen, offset = read_from(events.path, 0)

    events.emit("step", step=2)

    later, _ = read_from(events.path, offset)
    assert [line["seq"] for line in seen + later] == [1, 2]
    assert later[0]["step"] == 2


def test_what_a_power_cut_left_of_a_line_is_passed_over(tmp_path: Path) -> None:
    """Lines are not synced: zeros may lie where some were. A chain that stumbled over them would at every start."""
    events = Events(tmp_path / "events.jsonl", "SFT", "n")
    events.emit("step", step=1)
    with open(events.path, "ab") as f:
        f.write(b"\0" * 40 + b'"step": 2}\n' + b"[1]\n")

    events.emit("step", step=3)

    lines, _ = read_from(events.path, 0)
    assert [(line["seq"], line["step"]) for line in lines] == [(1, 1), (2, 3)]


def test_a_text_without_measure_is_cut(tmp_path: Path) -> None:
    """Only the end of the file is looked at for the last number: a longer line would stop every later one."""
    events = Events(tmp_path / "events.jsonl")
    events.emit("error", msg="size mismatch for layer " * 10_000)

    events.emit("stage_start")

    lines, _ = read_from(events.path, 0)
    assert [line["seq"] for line in lines] == [1, 2]
    assert len(lines[0]["msg"]) == 4096


def test_writers_never_share_a_number(tmp_path: Path) -> None:
    """Many writers at once leave whole lines, numbered without gap or repetition."""
    events = Events(tmp_path / "events.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: events.emit("step", step=i, note="x" * 200), range(400)))

    lines, _ = read_from(events.path, 0)

    assert [line["seq"] for line in lines] == list(range(1, 401))
    assert {line["step"] for line in lines} == set(range(400))


def test_not_a_number_is_told(tmp_path: Path) -> None:
    """A loss that is not a number is written as a word: JSON has no such number, and silence would hide it."""
    events = Events(tmp_path / "events.jsonl")

    events.emit("step", loss=float("nan"), grad_norm=float("inf"))

    (line,), _ = read_from(events.path, 0)
    assert (line["loss"], line["grad_norm"]) == ("nan", "inf")


@pytest.mark.parametrize("size", [0, 1, 1000, 2000, 2001])
def test_digest_by_chunk(tmp_path: Path, size: int) -> None:
    """Whole hash, size and every chunk agree with hashing the same bytes in memory."""
    content = bytes(range(256)) * 8
    (tmp_path / "file").write_bytes(content[:size])

    digest = hashes.digest(tmp_path / "file", chunk_size=1000)

    pieces = [content[:size][i : i + 1000] for i in range(0, size, 1000)]
    assert (digest.size, digest.sha256) == (size, hashlib.sha256(content[:size]).hexdigest())
    assert digest.chunks == [hashlib.sha256(piece).hexdigest() for piece in pieces]


def test_hashes_command(tmp_path: Path) -> None:
    """One JSON line a path, in the order asked, by an interpreter that has nothing but its standard library."""
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "folder").mkdir()
    command = [sys.executable, "-S", "-m", "remote_payload.hashes", "a", "missing", "folder"]

    printed = subprocess.check_output(command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, text=True)

    assert [json.loads(line) for line in printed.splitlines()] == [
        {"path": "a", "size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
        {"path": "missing", "missing": True},
        {"path": "folder", "missing": True},
    ]


def with_artifacts(make_box: MakeBox) -> Box:
    """A box at the end of GGUF, its artifacts small but under their real names."""
    box = make_box(stages=[StagePlan(Stage.GGUF, "nonce-gguf")])
    for name in ("tiny-Q8_0.gguf", "adapter/adapter_config.json", "tokenizer/tokenizer.json", "base/config.json"):
        (box.layout.out / name).parent.mkdir(parents=True, exist_ok=True)
        (box.layout.out / name).write_text(name)
    for name in ("reference.jsonl", "metrics.jsonl", "log.txt", "report.json"):
        (box.layout.out / name).write_text(name)
    box.layout.stage(Stage.GGUF).mkdir()
    box.layout.adapter(Stage.SFT).mkdir(parents=True)
    (box.layout.adapter(Stage.SFT) / "adapter_model.safetensors").write_bytes(b"weights")
    return box


def test_manifest_names_everything(make_box: MakeBox) -> None:
    """Each artifact is there with its role and hash, the GGUF with its quantisation, the adapters as parents."""
    box = with_artifacts(make_box)
    (box.layout.stage(Stage.GGUF) / "tools.json").write_text('{"llama.cpp": "b1"}')

    assert manifest.write_manifest(box.layout, box.job, Events(box.layout.events)) is Exit.OK

    written = contract.load(Manifest, box.layout.manifest.read_bytes())
    roles = {file.path.removeprefix("run/out/"): file.role for file in written.files}
    assert roles["tiny-Q8_0.gguf"] is Role.GGUF
    assert set(roles.values()) == set(Role)
    assert [file.quant for file in written.files if file.role is Role.GGUF] == ["Q8_0"]
    assert all(file.sha256 == hashes.sha256(box.layout.file(file.path)) for file in written.files)
    assert (written.nonce, written.chunk_size) == ("nonce-gguf", CHUNK_SIZE)
    assert written.parents == {"SFT": hashlib.sha256(b"weights").hexdigest()}
    assert written.tools == {"llama.cpp": "b1"}
    assert len(manifest.outputs(box.layout)) == len(written.files) + 1


def test_a_life_that_ended_in_the_outbox(make_box: MakeBox) -> None:
    """A reboot while the report was written leaves half of it beside: the next life goes on."""
    box = with_artifacts(make_box)
    (box.layout.stage(Stage.GGUF) / "quality.json").write_text("[]")
    box.layout.result(Stage.GGUF).write_text('{"metrics": {}}')
    (box.layout.out / ".report.json.23591.tmp").write_text('{"prep')

    outbox.fill(box.layout, box.job, box.layout.adapter(Stage.SFT))

    assert manifest.write_manifest(box.layout, box.job, Events(box.layout.events)) is Exit.OK


@pytest.mark.parametrize("name", outbox.TOKENIZER)
def test_every_file_of_a_tokenizer_is_taken_at_home(name: str) -> None:
    """One that is not would refuse the model of each base that has it, and no second try would help."""
    assert str(local_name(f"run/out/tokenizer/{name}")) == f"tokenizer/{name}"


def test_stranger_among_the_artifacts(make_box: MakeBox) -> None:
    """A file of no known role, or a link, is not smuggled home."""
    box = with_artifacts(make_box)
    (box.layout.out / "surprise.py").write_text("import os")

    with pytest.raises(ScriptFailed, match=r"surprise\.py"):
        manifest.write_manifest(box.layout, box.job, Events(box.layout.events))

    (box.layout.out / "surprise.py").unlink()
    (box.layout.out / "log.txt").unlink()
    (box.layout.out / "log.txt").symlink_to("/etc/passwd")
    with pytest.raises(ScriptFailed, match=r"log\.txt"):
        manifest.write_manifest(box.layout, box.job, Events(box.layout.events))


def test_missing_quantisation(make_box: MakeBox) -> None:
    """A manifest without one of the GGUF files asked for is not written."""
    box = with_artifacts(make_box)
    box.set(gguf=["Q8_0", "Q4_K_M"])

    with pytest.raises(ScriptFailed, match="lacks the GGUF of Q4_K_M"):
        manifest.write_manifest(box.layout, box.job, Events(box.layout.events))

    assert not box.layout.manifest.exists()


def test_preflight_passes_on_the_image(make_box: MakeBox) -> None:
    """The box image has every pinned package and computes rightly; the report says what the machine has."""
    box = make_box()

    done = box.call("preflight")

    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (Exit.OK, True), report["checks"]
    assert report["torch"].startswith("2.13.0")
    assert report["disk_free"] > 0 and report["ram"] > 0
    assert {check["name"] for check in report["checks"]} >= {"python", "disk", "memory", "line", "matmul cpu"}


def test_preflight_names_what_is_missing(make_box: MakeBox) -> None:
    """A pinned package that is absent, and a root that takes no files, fail the preflight by name."""
    box = make_box()
    code = (
        "import importlib.metadata, json; from pathlib import Path; from remote_payload import host, preflight\n"
        "pins = Path(preflight.__file__).with_name('requirements.txt').read_text()\n"
        "Path('payload').mkdir(); Path('payload/requirements.txt').write_text(pins + 'no-such-package==1.0\\n')\n"
        "preflight.__file__ = str(Path('payload/preflight.py'))\n"
        "checks = [*preflight.requirement_checks(), host.disk_check(Path('no-such-folder'), 0)]\n"
        "print(json.dumps([[check.name, check.ok] for check in checks]))"
    )

    assert json.loads(box.evaluate(code)) == [["no-such-package", False], ["disk", False]]


@pytest.mark.parametrize(
    ("printed", "busy", "memory"),
    [
        ("3, 4096, 81559\n97, 61170, 81559\n", 97.0, 75.0),
        ("[N/A], 1024, 2048\n", None, 50.0),
        ("", None, None),
        ("No devices were found\n", None, None),
    ],
)
def test_load_of_the_cards(printed: str, busy: float | None, memory: float | None) -> None:
    """The busiest card and the fullest one count; what a card does not say is not known."""
    assert gpu.read(printed) == gpu.Load(busy, memory)


def test_nothing_waits_for_a_tool_that_cannot_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card fell off its bus: nvidia-smi outlasts a kill. It is left alone, and not asked again till it ends."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho asked >> "$0.log"\nexec sleep 20\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpu, "PATIENCE_S", 0.5)
    cards, began = gpu.Cards(), time.monotonic()

    with monkeypatch.context() as unkillable:
        unkillable.setattr(subprocess.Popen, "kill", lambda process: None)
        loads = [cards.load(), cards.load()]
    waited_s = time.monotonic() - began
    asked = (tmp_path / "nvidia-smi.log").read_text().count("asked")
    assert cards.unanswered
    cards.unanswered.kill()
    cards.unanswered.wait()
    tool.write_text("#!/bin/sh\necho 3, 4096, 81559\n")

    assert (loads, asked, waited_s < 10) == ([gpu.Load(), gpu.Load()], 1, True)
    assert cards.load().busy == 3.0
