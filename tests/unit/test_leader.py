"""The high-water file: what a restored or copied database has forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import Connection
from store import NOW, add_job, opened

from daemon.store import leader


def led_again(folder: Path, machine: str = "machine-1") -> str | None:
    """What the next daemon thinks of the database in `folder`."""
    database = opened(folder, lead=False)
    try:
        doubts: list[str] = []
        leader.take(database, machine, NOW, lambda c, epoch, why: doubts.append(why))
        return doubts[0] if doubts else None
    finally:
        database.close()


def test_our_own_database_raises_no_doubt(tmp_path: Path) -> None:
    """A daemon that stopped, or was killed, is followed by one that trusts the database."""
    opened(tmp_path).close()

    assert led_again(tmp_path) is None


def test_a_backup_of_an_earlier_epoch(tmp_path: Path) -> None:
    """The high-water file knows a higher epoch than the database."""
    opened(tmp_path).close()
    shutil.copy(tmp_path / "homeport.db", tmp_path / "backup.db")
    assert led_again(tmp_path) is None
    shutil.copy(tmp_path / "backup.db", tmp_path / "homeport.db")

    assert "forgotten" in (led_again(tmp_path) or "")


def test_a_backup_of_the_same_epoch(tmp_path: Path) -> None:
    """The database lacks events that the file says were there."""
    database = opened(tmp_path)
    shutil.copy(tmp_path / "homeport.db", tmp_path / "backup.db")
    with database.write() as c:
        add_job(c)
    leader.note(database)
    database.close()
    for name in ("homeport.db-wal", "homeport.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", tmp_path / "homeport.db")

    assert "forgotten" in (led_again(tmp_path) or "")


def test_another_machine(tmp_path: Path) -> None:
    """A copied database is not ours to go on with."""
    opened(tmp_path).close()

    assert "another machine" in (led_again(tmp_path, "machine-2") or "")


def test_another_folder(tmp_path: Path) -> None:
    """Of a home and its copy on one computer the copy is in doubt, once, and the home never."""
    opened(tmp_path / "home").close()
    shutil.copytree(tmp_path / "home", tmp_path / "copy")

    assert "copied or moved" in (led_again(tmp_path / "copy") or "")
    assert led_again(tmp_path / "copy") is None
    assert led_again(tmp_path / "home") is None


def test_a_crash_before_doubt_had_its_way(tmp_path: Path) -> None:
    """Whoever dies before every job is held leaves the doubt to the next daemon."""

    def dies(c: Connection, epoch: int, why: str) -> None:
        raise KeyboardInterrupt

    opened(tmp_path).close()
    database = opened(tmp_path, lead=False)
    with pytest.raises(KeyboardInterrupt):
        leader.take(database, "machine-2", NOW, dies)
    database.close()

    assert "another machine" in (led_again(tmp_path, "machine-2") or "")


def install(folder: Path) -> str | None:
    database = opened(folder)
    with database.read() as c:
        found = leader.get_meta(c, "install_id")
    database.close()
    return found


def test_a_database_made_anew_keeps_the_install(tmp_path: Path) -> None:
    """The database is deleted: the next one knows the machines of the old one by their labels, and is in doubt."""
    before = install(tmp_path)
    for path in tmp_path.glob("homeport.db*"):
        path.unlink()

    assert "forgotten" in (led_again(tmp_path) or "")
    assert install(tmp_path) == before


def test_a_copy_put_back_on_a_new_disk(tmp_path: Path) -> None:
    """The high-water file went with the old disk: nobody knows what the copy has forgotten."""
    opened(tmp_path).close()
    (tmp_path / "high-water").unlink()

    assert "high-water is gone" in (led_again(tmp_path) or "")
    assert led_again(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epoch": "1"}', '{"epoch": 1}'])
def test_a_high_water_file_that_makes_no_sense(tmp_path: Path, content: str) -> None:
    """Nobody knows what was known before: that is doubt, not a crash and not trust."""
    opened(tmp_path).close()
    (tmp_path / "high-water").write_text(content)

    assert "nobody knows" in (led_again(tmp_path) or "")
    assert led_again(tmp_path) is None
