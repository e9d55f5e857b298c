"""`jobctl verify`: a settled model folder and lone GGUFs, looked at again with the real files of the nano model."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from nano_artifacts import NanoArtifacts, nano_artifacts

from daemon.artifacts import folder, levels, scrub
from daemon.artifacts.verify import Report
from daemon.errors import SpecError
from remote_payload.contract import dump

Q8 = "forex-Q8_0.gguf"
SETTLED = Report(True, "full", (levels.passed(levels.BEHAVIOUR, {}),))  # its numbers are not what is looked at here


@pytest.fixture(scope="module")
def made() -> NanoArtifacts:
    return nano_artifacts()


@pytest.fixture
def home(made: NanoArtifacts, tmp_path: Path) -> Path:
    """The model folder that a job left; writable, as a disk that forgets does not ask."""
    shutil.copytree(made.out, tmp_path / ".incoming")
    base = {"model": str(made.base), "revision": None, "without_opening": False}
    done = folder.settle(
        tmp_path, tmp_path / ".incoming", manifest_text=dump(made.manifest), name="forex", report=SETTLED,
        spec_text="", base_model="nano", base=base,
    )  # fmt: skip
    for path in Path(done.folder).rglob("*"):
        path.chmod(0o755)
    return Path(done.folder)


def again(path: Path, tmp_path: Path, **more: Any) -> Report:
    asked: dict[str, Any] = {"base": None, "sha256": None}
    return scrub.again(path, **asked | more, cache=tmp_path, hub="http://127.0.0.1:1", say=lambda level: None)


def verdicts(report: Report) -> dict[str, str]:
    return {level.name[:2]: "passed" if level.passed else level.problem for level in report.levels}


def test_a_model_folder_passes_every_level_again(home: Path, tmp_path: Path) -> None:
    """From the folder alone, and from any file in it; nothing is changed."""
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}

    whole, by_file = again(home, tmp_path), again(home / Q8, tmp_path)

    assert whole.passed and whole.depth == "full" and whole.sample
    assert verdicts(by_file) == verdicts(whole) == dict.fromkeys(("L0", "L1", "L2", "L3", "L4", "L5"), "passed")
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_what_a_disk_forgot_is_found(home: Path, tmp_path: Path) -> None:
    """One bit of one weight; a manifest that was rewritten to fit it."""
    content = bytearray((home / Q8).read_bytes())
    good = hashlib.sha256(content).hexdigest()
    content[-100] ^= 1
    (home / Q8).write_bytes(content)

    assert "sha256 on disk" in verdicts(again(home, tmp_path))["L1"]
    manifest = home / "manifest.json"
    manifest.write_text(manifest.read_text().replace(good, hashlib.sha256(content).hexdigest()))
    assert "not the one that receipt.json is about" in verdicts(again(home, tmp_path))["L0"]


def test_a_file_that_the_manifest_does_not_name_was_compared_with_nothing(home: Path, tmp_path: Path) -> None:
    """A copy put beside the model is not what the receipt is about, though the folder is whole."""
    shutil.copyfile(home / Q8, home / "other.gguf")
    digest = hashlib.sha256((home / Q8).read_bytes()).hexdigest()

    report = again(home / "other.gguf", tmp_path)

    assert not report.passed
    assert "other.gguf is not named by manifest.json beside it: compared with nothing" in verdicts(report)["L0"]
    assert again(home / "other.gguf", tmp_path, sha256=digest).passed
    assert again(home / "receipt.json", tmp_path).passed


def test_a_base_model_that_is_gone_is_said(home: Path, made: NanoArtifacts, tmp_path: Path) -> None:
    """The folder of then was moved: L3 is not run, unless it is named; the rest is as good as ever."""
    receipt = home / "receipt.json"
    receipt.write_text(receipt.read_text().replace(str(made.base), "/moved/away"))

    without, named = again(home, tmp_path), again(home, tmp_path, base=Path(os.path.relpath(made.base)))

    assert without.passed and without.depth == "any"
    assert verdicts(without)["L3"].startswith("not run")
    assert named.depth == "full"


def test_a_gguf_from_elsewhere_is_held_against_what_there_is(made: NanoArtifacts, tmp_path: Path) -> None:
    """Alone: structure and numbers. With a hash and a base model: those too. Behaviour has nothing to compare with."""
    path = tmp_path / "elsewhere.gguf"
    shutil.copyfile(made.out / Q8, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    alone = again(path, tmp_path)
    told = again(path, tmp_path, base=Path(os.path.relpath(made.base)), sha256=digest)

    assert alone.passed and told.passed
    assert [name for name, verdict in verdicts(alone).items() if verdict != "passed"] == ["L1", "L3", "L5"]
    assert digest in verdicts(alone)["L1"]
    assert [name for name, verdict in verdicts(told).items() if verdict != "passed"] == ["L5"]
    assert again(path, tmp_path, sha256=digest.upper()).passed
    for name in ("elsewhere.gguf", "./elsewhere.gguf", "two words.gguf"):
        there = path.rename(tmp_path / name.removeprefix("./"))
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
        assert "expected 0000" in verdicts(again(there, tmp_path))["L1"]
        there.rename(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe would be waited on for ever."""
    os.mkfifo(tmp_path / "pipe.gguf")

    with pytest.raises(SpecError, match="neither a file nor a folder"):
        again(tmp_path / "pipe.gguf", tmp_path)


def test_a_gguf_that_is_cut_off_is_found_without_a_hash(made: NanoArtifacts, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.gguf"
    path.write_bytes((made.out / Q8).read_bytes()[:-1])

    report = again(path, tmp_path)

    assert not report.passed and "of a file of" in verdicts(report)["L2"]


def test_a_gguf_with_holes_is_found_without_a_hash(made: NanoArtifacts, tmp_path: Path) -> None:
    """As a disk leaves one whose blocks never came: of the right size, and empty."""
    path = tmp_path / "elsewhere.gguf"
    path.write_bytes((made.out / Q8).read_bytes()[: 64 << 10])
    os.truncate(path, (made.out / Q8).stat().st_size)

    report = again(path, tmp_path)

    assert not report.passed and verdicts(report) == {"L0": report.levels[0].problem}
    assert "holes" in report.problem


def test_a_base_model_that_is_named_must_be_one(home: Path, tmp_path: Path) -> None:
    """What the receipt names may have been moved since; what the person names is a mistake that they hear of."""
    (tmp_path / "empty").mkdir()

    with pytest.raises(SpecError, match=r"config.json and tokenizer.json missing"):
        again(home, tmp_path, base=tmp_path / "empty")


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """With words that say what to do instead."""
    with pytest.raises(SpecError, match="not a model folder") as refused:
        again(tmp_path, tmp_path)

    assert "jobctl verify FILE.gguf" in refused.value.hint
