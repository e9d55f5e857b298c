"""The model folder and its receipt: one rename, repeatable after a crash, and nothing that changes unseen."""

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.artifacts import folder, levels, receipt
from daemon.artifacts.card import modelfile, trainings
from daemon.artifacts.layout import local_name
from daemon.artifacts.verify import Report
from daemon.errors import Refused
from remote_payload.contract import ArtifactFile, ContractError, Gain, Manifest, Role, Score, Subject, dump

FILES: dict[str, tuple[Role, bytes]] = {
    "m-Q8_0.gguf": (Role.GGUF, b"weights" * 1000),
    "adapter/adapter_config.json": (Role.ADAPTER, b"{}"),
    "tokenizer/tokenizer.json": (Role.TOKENIZER, b'{"added_tokens": [{"content": "<|im_end|>"}]}'),
    "tokenizer/tokenizer_config.json": (Role.TOKENIZER, b'{"eos_token": "<\\" end>"}'),
    "metrics.jsonl": (
        Role.METRICS,
        b'{"stage":"SFT","step":1,"loss":2.5}\nnot json\n[1]\n{"stage":"SFT","step":9,"loss":1.25}\n'
        b'{"stage":"DPO","step":3,"loss":NaN}\n',
    ),
}
REPORT = Report(
    passed=True,
    depth="full",
    levels=(levels.passed(levels.BEHAVIOUR, {"Q8_0": {"kl_mean": 0.001, "top1": 0.99}}, ("a warning",)),),
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder with one verified download in it."""
    for name, (_, content) in FILES.items():
        path = tmp_path / ".incoming-abc123" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


DATA = (
    {"kind": "sft", "sha256": "aa", "original_sha256": "bb", "read": 15300, "kept": 15290, "trained": 10560}
    | {"truncated": 4, "steps": 330},
    {"kind": "eval", "sha256": "cc", "original_sha256": "dd", "read": 400},
)


def manifest() -> Manifest:
    files = [
        ArtifactFile(f"run/out/{name}", role, len(content), hashlib.sha256(content).hexdigest(), [], None)
        for name, (role, content) in FILES.items()
    ]
    files[0] = dataclasses.replace(files[0], quant="Q8_0")
    return Manifest("abc123", 1, "nonce", 0.0, 8 << 20, files)


SHA256 = hashlib.sha256(dump(manifest()).encode()).hexdigest()


def settle(models: Path, **changes: Any) -> receipt.Receipt:
    settings: dict[str, Any] = {
        "manifest_text": dump(manifest()),
        "name": "forex",
        "report": REPORT,
        "data": DATA,
        "spec_text": "version: 1\n",
        "base_model": "org/base",
    }
    return folder.settle(models, models / ".incoming-abc123", **settings | changes)


def test_everything_lies_in_its_place(models: Path) -> None:
    """The folder holds model, card, recipe, sums, spec and receipt, read-only; `current` names it; incoming is gone."""
    log = models / "job.log"
    log.write_text("line\n")

    done = settle(models, log_file=log)

    home = models / "forex" / "v1-abc123"
    assert done.folder == str(home)
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()) == sorted(
        [*FILES, "Modelfile", "README.md", "SHA256SUMS", "job.yaml", "manifest.json", "logs/daemon.txt", "receipt.json"]
    )
    assert {path.stat().st_mode & 0o777 for path in home.rglob("*") if path.is_file()} == {0o444}
    assert (models / "forex" / "current").read_text() == "v1-abc123\n"
    assert not (models / ".incoming-abc123").exists()
    assert (home / "job.yaml").read_text() == "version: 1\n"


def test_the_texts_say_what_was_done(models: Path) -> None:
    """The card has base, losses and the local numbers; the recipe stops at the known end of a turn, and only at it."""
    settle(models)

    home = models / "forex" / "v1-abc123"
    card = (home / "README.md").read_text()
    assert "Is it better?" not in card
    assert card.startswith('---\nbase_model: "org/base"\n')
    assert "| SFT | 9 | 2.5000 | 1.2500 |" in card
    assert "| DPO |" not in card
    assert "| sft | 15,300 | 15,290 | 10,560 | 4 | `bb` |\n| eval | 400 | - | - | - | `dd` |" in card
    assert "| 7000 | 0.00100 | 99.0% |" in card
    assert "Note: a warning" in card
    assert (home / "Modelfile").read_text() == 'FROM ./m-Q8_0.gguf\nPARAMETER stop "<|im_end|>"\n'


@pytest.mark.parametrize("added", [5, [1], [{"content": []}], [{}]])
def test_what_the_box_wrote_oddly_is_left_out_of_the_texts(added: Any) -> None:
    """Its tokenizer and its metrics are read after the verification, which they must not bring to nothing."""
    assert modelfile(manifest(), {"added_tokens": added}, {"eos_token": {}}) == "FROM ./m-Q8_0.gguf\n"
    assert trainings([b'{"stage": [], "step": 1, "loss": 1.0}', b'{"stage": {}, "step": 1, "loss": 1.0}']) == []


def test_the_card_says_whether_the_model_is_better(models: Path) -> None:
    """Where the box scored held-out rows, card and receipt have every comparison, none of it in the box's words."""
    scores = [
        Score(Subject.NEW, rows=400, nll=1.4),
        Score(Subject.BASE, rows=400, nll=2.3, nll_gain=Gain(0.9, 0.8, 1.0)),
        Score(Subject.COMPARED, rows=400, nll=1.4, nll_gain=Gain(0.0, -0.1, 0.1)),
    ]
    done = settle(models, manifest_text=dump(dataclasses.replace(manifest(), scores=scores)))

    card = (models / "forex" / "v1-abc123" / "README.md").read_text()
    assert "- better than the base model on 400 held-out rows: 1.400 nats a token against 2.300" in card
    assert "- not measurably better than the model that eval.compare_to names" in card
    assert [score["subject"] for score in done.scores] == ["new", "base", "compared"]
    assert receipt.load((models / "forex" / "v1-abc123" / "receipt.json").read_text()) == done


def test_sums_are_of_every_file_but_themselves_and_the_receipt(models: Path) -> None:
    """Each line of SHA256SUMS is true of the file it names."""
    home = Path(settle(models).folder)

    sums = dict(reversed(line.split("  ")) for line in (home / "SHA256SUMS").read_text().splitlines())

    present = {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}
    assert set(sums) == present - {"SHA256SUMS", "receipt.json"}
    assert all(hashlib.sha256((home / path).read_bytes()).hexdigest() == digest for path, digest in sums.items())


def test_settling_twice_is_settling_once(models: Path) -> None:
    """A crash after the rename repeats the call: same folder, same receipt, no second version."""
    first = settle(models)

    assert first.data == DATA
    assert settle(models) == first
    assert folder.settled(models, name="forex", job="abc123", manifest_sha256=SHA256) == first
    assert [path.name for path in (models / "forex").glob("v*")] == ["v1-abc123"]


def test_a_folder_that_changed_is_not_settled(models: Path) -> None:
    """After a crash, a folder whose model was touched meanwhile must not pass for the verified one."""
    done = settle(models)
    asked: dict[str, Any] = {"name": "forex", "job": "abc123", "manifest_sha256": SHA256}
    assert folder.settled(models, **asked) == done
    assert folder.settled(models, **asked | {"manifest_sha256": "00" * 32}) is None

    touch(Path(done.folder, "m-Q8_0.gguf"))

    assert folder.settled(models, **asked) is None


def test_a_crash_before_current_was_written_is_mended_by_the_next_look(models: Path) -> None:
    """The folder is in its place and `current` names the one before it."""
    done = settle(models)
    current = models / "forex" / "current"
    current.write_text("v0-older\n")

    assert folder.settled(models, name="forex", job="abc123", manifest_sha256=SHA256) == done

    assert current.read_text() == "v1-abc123\n"


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


@pytest.mark.parametrize("step", range(60))  # more than settling makes
def test_killed_at_any_step_it_can_be_called_again(models: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Whichever replace, chmod, rename or sync is the last one done, the next call ends with the same whole folder."""
    left = step

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((os, "replace"), (os, "rename"), (os, "chmod"), (os, "fsync")):
            patched.setattr(owner, name, counted(getattr(os, name)))
        with contextlib.suppress(Killed):
            settle(models)

    done = settle(models)

    assert receipt.recheck(done) is None
    assert folder.settled(models, name="forex", job="abc123", manifest_sha256=SHA256) == done
    assert [path.name for path in (models / "forex").iterdir() if path.is_dir()] == ["v1-abc123"]
    assert (models / "forex" / "current").read_text() == "v1-abc123\n"
    assert not list(models.glob(".incoming-*"))


def test_another_job_of_the_same_name_is_the_next_version(models: Path) -> None:
    """Versions count up, and `current` follows the newest."""
    settle(models)
    (models / "forex" / "v7-older9").mkdir()
    (models / ".incoming-xyz789").mkdir()
    for name, (_, content) in FILES.items():
        path = models / ".incoming-xyz789" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    done = folder.settle(
        models, models / ".incoming-xyz789", manifest_text=dump(dataclasses.replace(manifest(), job="xyz789")),
        name="forex", report=REPORT, spec_text="", base_model="b",
    )  # fmt: skip

    assert Path(done.folder).name == "v8-xyz789"
    assert (models / "forex" / "current").read_text() == "v8-xyz789\n"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "/etc"])
def test_a_name_that_leaves_the_folder_is_refused(models: Path, name: str) -> None:
    """A model's name is one plain component of a path."""
    with pytest.raises(Refused):
        settle(models, name=name)


def test_a_failed_report_gets_no_receipt(models: Path) -> None:
    """Nothing that did not pass can be settled, whoever asks."""
    failed = Report(False, "full", (levels.failed(levels.BYTES, "wrong"),))

    with pytest.raises(ValueError, match="wrong"):
        settle(models, report=failed)

    assert (models / ".incoming-abc123").exists()


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def rewrite(path: Path) -> None:
    status = path.stat()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def overwrite(path: Path) -> None:
    """Another byte in place, and the time set back: inode, size and mtime are as before."""
    status = path.stat()
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(path: Path) -> None:
    path.chmod(0o644)
    with open(path, "ab") as file:
        file.write(b"x")


def replace_by_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def remove_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


CHANGES = [
    (Path.unlink, "is gone"),
    (touch, "was changed"),
    (rewrite, "was changed"),
    (overwrite, "has other bytes"),
    (append, "was changed"),
    (replace_by_link, "no longer a plain file"),
    (remove_folder, "is gone"),
]


@pytest.mark.parametrize(("change", "says"), CHANGES)
def test_the_receipt_notices(models: Path, change: Any, says: str) -> None:
    """Deleted, touched, copied over, lengthened, linked or moved: the receipt is no longer true and says of what."""
    keep = models / "keep"  # holds the freed inode, which the next file would get again
    done = settle(models)
    path = Path(done.folder, "m-Q8_0.gguf")
    os.link(path, keep)
    assert receipt.recheck(done) is None

    change(path)

    problem = receipt.recheck(done)
    assert problem is not None
    assert says in problem and "m-Q8_0.gguf" in problem


def test_a_receipt_survives_its_file(models: Path) -> None:
    """receipt.json gives back the very receipt that was taken."""
    done = settle(models)

    assert receipt.load(Path(done.folder, "receipt.json").read_text()) == done


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "homeport.receipt/2"}', "null"])
def test_what_is_no_receipt_is_refused(text: str) -> None:
    """A damaged receipt.json is an error, not an empty receipt."""
    with pytest.raises(ContractError):
        receipt.load(text)


def test_a_receipt_that_names_files_elsewhere_is_refused(models: Path) -> None:
    """Paths in a receipt stay in its folder."""
    raw = json.loads(Path(settle(models).folder, "receipt.json").read_text())
    raw["files"][0]["path"] = "../../etc/passwd"

    with pytest.raises(ContractError):
        receipt.load(json.dumps(raw))


def test_a_lost_model_goes_back_to_where_downloads_arrive(models: Path) -> None:
    """After a file was deleted the rest is kept, writable, for the next download; settling again is a new version."""
    home = Path(settle(models).folder)
    (home / "m-Q8_0.gguf").unlink()

    folder.set_aside(home)
    folder.set_aside(home)

    incoming = models / ".incoming-abc123"
    assert not home.exists()
    assert not (incoming / "receipt.json").exists()
    assert (incoming / "metrics.jsonl").stat().st_mode & 0o200
    (incoming / "m-Q8_0.gguf").write_bytes(FILES["m-Q8_0.gguf"][1])
    assert receipt.recheck(settle(models)) is None


def test_a_lost_model_takes_the_place_of_nothing(models: Path) -> None:
    """What is on its way home meanwhile stays as it is, and so does the model, beside its place."""
    home = Path(settle(models).folder)
    (models / ".incoming-abc123").mkdir()
    (models / ".incoming-abc123/m-Q8_0.gguf.part").write_bytes(b"half")

    folder.set_aside(home)

    assert [path.name for path in (models / ".incoming-abc123").iterdir()] == ["m-Q8_0.gguf.part"]
    assert (home.with_name(".lost-v1-abc123") / "m-Q8_0.gguf").read_bytes() == FILES["m-Q8_0.gguf"][1]


def test_a_folder_of_the_persons_own_is_left_alone(models: Path) -> None:
    """Whatever the database names as a model's folder, only one of ours is ever moved."""
    (models / "forex/photos").mkdir(parents=True)

    folder.set_aside(models / "forex/photos")

    assert (models / "forex/photos").is_dir()


def test_half_a_download_does_not_come_with_the_model(models: Path) -> None:
    """Left by an artifact set that was replaced: it is in no manifest, and `verify` would have to object."""
    (models / ".incoming-abc123/old-Q4_K_M.gguf.part").write_bytes(b"half")

    home = Path(settle(models).folder)

    assert not list(home.rglob("*.part"))


def test_a_folder_without_a_receipt_is_not_the_one_sought(models: Path) -> None:
    """Though its name says that it is a version of the same job."""
    (models / "forex/v0-abc123").mkdir(parents=True)
    done = settle(models)

    assert folder.settled(models, name="forex", job="abc123", manifest_sha256=SHA256) == done


def test_a_lost_models_way_back_is_durable(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an error came between the move and the sync of its folders, the next call syncs what was moved."""
    home = Path(settle(models).folder)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="full"):
        broken.setattr(folder.platform, "sync_folder", fail)
        folder.set_aside(home)
    assert not home.exists()
    synced: list[Path] = []
    monkeypatch.setattr(folder.platform, "sync_folder", synced.append)

    folder.set_aside(home)

    assert synced == [home.parent, models]


def fail(path: Path) -> None:
    raise OSError("full")


def test_names_that_come_home() -> None:
    """TensorBoard's files too, and nothing under a name that the folder writes itself after the receipt."""
    assert local_name("run/out/tensorboard/sft/events.out.tfevents.1764000000.box-1.77.0").parts[0] == "tensorboard"
    for refused in ("tensorboard/sft/x/events.out.tfevents.1.h.2.0", "tensorboard/sft/events.out.tfevents.1.h.pkl"):
        with pytest.raises(ContractError):
            local_name(f"run/out/{refused}")
    with pytest.raises(ContractError, match="needs for itself"):
        local_name("run/out/logs/Daemon.txt")
    with pytest.raises(ContractError, match="needs for itself"):
        local_name("run/out/SHA256SUMS/x.json")


def test_a_file_changed_between_verification_and_receipt_gets_none(models: Path) -> None:
    """The report waited for the database; what lies there now nobody has read."""
    incoming = models / ".incoming-abc123"
    stamps = [(s.st_ino, s.st_size, s.st_mtime_ns) for s in ((incoming / name).stat() for name in FILES)]
    report = dataclasses.replace(REPORT, hashed=tuple(stamps))
    (incoming / "m-Q8_0.gguf").write_bytes(b"WEIGHTS" * 1000)

    with pytest.raises(receipt.Changed, match="after it was hashed"):
        settle(models, report=report)

    assert incoming.is_dir()


@pytest.mark.parametrize("damaged", [b"\xff\xfe{", None])
def test_an_earlier_folder_that_is_damaged_is_in_nobodys_way(models: Path, damaged: bytes | None) -> None:
    """Its receipt is no text any more, or a file bears the folder's name: the new model comes home all the same."""
    earlier = models / "forex/v1-abc123"
    earlier.parent.mkdir()
    if damaged is None:
        earlier.touch()
    else:
        earlier.mkdir()
        (earlier / "receipt.json").write_bytes(damaged)

    assert settle(models).folder == str(models / "forex/v2-abc123")
