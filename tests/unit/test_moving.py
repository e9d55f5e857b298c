"""A home that moves: there is never a moment in which two may drive, and no file of another leads out of its place."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from store import NOW, add_job, opened

from daemon import platform, settings
from daemon.cli import store_checks
from daemon.control import moving
from daemon.domain.spec import JobSpec
from daemon.errors import Refused
from daemon.settings import Settings
from daemon.store import leader, readonly
from daemon.store.database import Database

SPEC = JobSpec.model_validate({"version": 1, "name": "bot", "model": "any/m", "sft": {"data": "-"}})


def home(folder: Path) -> Settings:
    return settings.load({"HOMEPORT_HOME": str(folder)})


@pytest.fixture
def old(tmp_path: Path) -> Settings:
    """A home with one unfinished job and half a model."""
    config = home(tmp_path / "old")
    database = opened(config.paths.state)
    with database.write() as c:
        add_job(c, "k7f3qd", spec_json=SPEC.canonical_json())
    database.close()
    config.paths.ssh_key.write_text("key")
    half = config.paths.models / ".incoming-k7f3qd" / "bot.gguf.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half a model")
    return config


def is_fenced(config: Settings) -> bool:
    with closing(Database(config.paths.database)) as database:
        try:
            moving.refuse_moved(database)
        except Refused:
            return True
    return False


def doubts(config: Settings) -> list[str]:
    """What the next daemon doubts."""
    found: list[str] = []
    with closing(Database(config.paths.database)) as database:
        leader.take(database, platform.machine_id(), NOW, lambda c, epoch, why: found.append(why))
    return found


def test_what_travels(old: Settings, tmp_path: Path) -> None:
    """Key and half model are there with the database; the old home is fenced, the new one is not."""
    moving.export_home(old, tmp_path / "file")
    assert is_fenced(old)

    new = home(tmp_path / "new")
    moved = moving.import_home(new, tmp_path / "file")

    assert moved.jobs == ("k7f3qd",) and not is_fenced(new)
    assert (new.paths.models / ".incoming-k7f3qd" / "bot.gguf.part").read_bytes() == b"half a model"
    assert new.paths.ssh_key.read_text() == "key" and new.paths.ssh_key.stat().st_mode & 0o077 == 0
    assert not (new.paths.state / ".import").exists()
    assert not doubts(new)


def test_an_export_that_fails_leaves_the_home_as_it_was(old: Settings, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        moving.export_home(old, tmp_path / "no" / "such" / "folder" / "file")

    assert not is_fenced(old)
    assert not list(old.paths.state.glob(".export*"))


def test_exported_twice(old: Settings, tmp_path: Path) -> None:
    """The first file may be in use: a second export that fails leaves its fence, one that does not is held."""
    moving.export_home(old, tmp_path / "first")
    with pytest.raises(OSError):
        moving.export_home(old, tmp_path / "no" / "such" / "folder" / "file")
    assert is_fenced(old)

    moving.export_home(old, tmp_path / "second")
    marks = []
    for name in ("first", "second"):
        new = home(tmp_path / f"new-{name}")
        moving.import_home(new, tmp_path / name)
        with closing(Database(new.paths.database)) as database, database.read() as c:
            marks.append(leader.get_meta(c, "machine_id"))
    assert marks[0] == platform.machine_id() and str(marks[1]).startswith("export-")


@pytest.mark.parametrize("written", [True, False])
def test_who_asks_is_told_of_the_fence(
    old: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """By the daemon, `status` and `doctor`; an export that was killed had no file, and two commands lead out of it."""
    file = tmp_path / "the file"
    if not written:
        monkeypatch.setattr(moving, "_write", lambda *given: os._exit(9))
    if (child := os.fork()) == 0:
        moving.export_home(old, file)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == (0 if written else 9 << 8) and file.exists() == written
    monkeypatch.undo()

    (item,) = readonly.ReadModel(old.paths.database, old.paths.job_folders).jobs()["attention"]
    (_, line) = store_checks.database(old)
    with closing(Database(old.paths.database)) as database, pytest.raises(Refused) as refused:
        moving.refuse_moved(database)

    assert item["text"] == line["detail"] == refused.value.message
    assert item["hint"] == line["fix"] == refused.value.hint
    assert (f"import '{file}'" in item["hint"], "export FILE" in item["hint"]) == (written, not written)
    if not written:
        moving.export_home(old, file)
    moving.import_home(old, file)
    assert not readonly.ReadModel(old.paths.database, old.paths.job_folders).jobs()["attention"]


def test_the_fence_comes_before_the_file(old: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first byte is written no daemon can start here any more, and what is written is fenced as well."""
    fenced: list[bool] = []
    write = moving._write
    monkeypatch.setattr(moving, "_write", lambda *given: (fenced.append(is_fenced(old)), write(*given)))

    moving.export_home(old, tmp_path / "file")

    assert fenced == [True]
    with tarfile.open(tmp_path / "file") as archive:
        archive.extract("state/homeport.db", tmp_path / "copied", filter="data")
    copied = replace(old, paths=replace(old.paths, state=tmp_path / "copied" / "state"))
    assert is_fenced(copied)


@pytest.mark.parametrize("there", ["old/state/homeport.db", "theirs", ".", "dangling"])
def test_nothing_is_written_over(old: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    """Our own database, any file, what an empty name means, what a link would make; and nothing is fenced."""
    monkeypatch.chdir(tmp_path)
    Path("theirs").write_text("theirs")
    Path("theirs.new").write_text("theirs")
    Path("dangling").symlink_to("nowhere")

    with pytest.raises(Refused, match="is there already"):
        moving.export_home(old, Path(there))

    assert not is_fenced(old) and Path("theirs").read_text() == "theirs"
    moving.export_home(old, Path("theirs").with_suffix(".tar"))
    assert Path("theirs.new").read_text() == "theirs" and not list(tmp_path.glob("theirs.tar.*"))


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nothing to export"):
        moving.export_home(home(tmp_path / "empty"), tmp_path / "file")


def rewritten(file: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], *, promise: bool) -> None:
    """Every member as `change` has it; with `promise` its new name and hash stand in the first member too."""
    with tarfile.open(file) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    about = json.loads(members.pop(moving.ABOUT))
    changed = dict(pair for name, content in members.items() if (pair := change(name, content)))
    if promise:
        import hashlib

        about["files"] = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in changed.items()}
    with tarfile.open(file, "w") as archive:
        for name, content in {moving.ABOUT: json.dumps(about).encode(), **changed}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


HOSTILE = {
    "a changed file": (lambda n, c: (n, c.replace(b"half", b"HALF")), False),
    "a missing file": (lambda n, c: None if n.endswith(".part") else (n, c), False),
    "a name that leads out": (lambda n, c: (n.replace("models/", "models/../../"), c), True),
    "an absolute name": (lambda n, c: (f"/tmp/{n}" if n.endswith(".part") else n, c), True),
    "a folder of nobody": (lambda n, c: (n.replace("models/", "config/"), c), True),
}


@pytest.mark.parametrize("deed", HOSTILE)
def test_a_file_that_is_not_what_was_exported(old: Settings, tmp_path: Path, deed: str) -> None:
    """It is refused whole: nothing of it is put in place, and a whole file can be imported afterwards."""
    moving.export_home(old, tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    change, promise = HOSTILE[deed]
    rewritten(tmp_path / "file", change, promise=promise)  # type: ignore[arg-type]
    new = home(tmp_path / "new")

    with pytest.raises(Refused):
        moving.import_home(new, tmp_path / "file")

    assert not new.paths.database.exists() and not new.paths.models.exists()
    (tmp_path / "file").write_bytes(whole)
    assert moving.import_home(new, tmp_path / "file").jobs == ("k7f3qd",)


@pytest.mark.parametrize("where", ["old", "new"])
@pytest.mark.parametrize("content", [b"", b"x" * 2000, b"PK"])
def test_no_export_at_all(old: Settings, tmp_path: Path, content: bytes, where: str) -> None:
    """Said in words, in an empty home and in one that could take its jobs back."""
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Refused):
        moving.import_home(home(tmp_path / where), tmp_path / "file")


@pytest.mark.parametrize("lacking", ["export", "again", "state/homeport.db"])
@pytest.mark.parametrize("where", ["old", "new"])
def test_an_export_that_lacks_what_every_one_has(old: Settings, tmp_path: Path, lacking: str, where: str) -> None:
    """It is named, and no home of no jobs is made of it."""
    about = {"schema": moving.SCHEMA, "export": "x", "again": False, "files": {"state/homeport.db": {}}}
    for part in (about, about["files"]):
        part.pop(lacking, None)  # type: ignore[attr-defined]
    with tarfile.open(tmp_path / "file", "w") as archive:
        content = json.dumps(about).encode()
        member = tarfile.TarInfo(moving.ABOUT)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    with pytest.raises(Refused, match=lacking):
        moving.import_home(home(tmp_path / where), tmp_path / "file")
    assert not home(tmp_path / "new").paths.database.exists()


@pytest.mark.parametrize("left", ["id_ed25519", "high-water", "backups/homeport-1.db"])
def test_a_home_that_has_lost_its_database(old: Settings, tmp_path: Path, left: str) -> None:
    """Its key and its name are those of machines that may bill: they are named, and stay."""
    moving.export_home(old, tmp_path / "file")
    new = home(tmp_path / "new")
    kept = new.paths.state / left
    kept.parent.mkdir(parents=True)
    kept.write_text("of another installation")

    with pytest.raises(Refused, match=str(kept)) as raised:
        moving.import_home(new, tmp_path / "file")

    assert ("doctor --fix" in raised.value.hint) == ("backups" in left)
    assert kept.read_text() == "of another installation" and not new.paths.database.exists()


def test_an_import_that_was_cut_short(old: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is begun again, whatever it had put in place before the database."""
    moving.export_home(old, tmp_path / "file")
    new, real = home(tmp_path / "new"), shutil.move

    def full(source: Path, target: Path) -> None:
        if target == new.paths.database:
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(shutil, "move", full)
        moving.import_home(new, tmp_path / "file")
    assert new.paths.ssh_key.exists()

    assert moving.import_home(new, tmp_path / "file").jobs == ("k7f3qd",)


def test_a_home_with_jobs_of_its_own(old: Settings, tmp_path: Path) -> None:
    """Another's export is refused; one's own takes the jobs back, and the next daemon will doubt them."""
    moving.export_home(old, tmp_path / "file")
    other = replace(old, paths=home(tmp_path / "other").paths)
    opened(other.paths.state).close()
    with pytest.raises(Refused, match="jobs of its own"):
        moving.import_home(other, tmp_path / "file")

    assert "held" in moving.import_home(old, tmp_path / "file").notes[0]
    assert not is_fenced(old)
