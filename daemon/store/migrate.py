"""Bring the database to this version's schema, after a backup. A newer database is refused, never touched."""

from __future__ import annotations

from pathlib import Path

from daemon.errors import StoreError
from daemon.store import backups as copies
from daemon.store.database import Database

HEAD = "0001"


def migrate(database: Database, backups: Path, now_ms: int) -> Path | None:
    """Upgrade in one transaction; returns the backup that was made, None when there was nothing to do or save.

    Raises StoreError for a database of a newer homeport or one that is damaged.
    """
    present = _revision(database)
    if present == HEAD:
        return None
    backup = copies.copy(database.path, backups, now_ms) if present else None
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_scripts()))
    if present and present not in {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}:
        raise StoreError(
            f"{database.path} was written by a newer homeport (schema {present}, this one knows {HEAD})",
            hint="pip install --upgrade homeport",
        )
    with database.write(fenced=False) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return backup


def _scripts() -> Path:
    """In the wheel beside this package, in a checkout at its top."""
    shipped = Path(__file__).parents[1] / "_migrations"
    return shipped if shipped.exists() else Path(__file__).parents[2] / "migrations"


def _revision(database: Database) -> str | None:
    with database.read() as c:
        tables = {row[0] for row in c.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" not in tables:
            if tables:
                raise StoreError(f"{database.path} is not a homeport database", hint="move it away")
            return None
        return str(c.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())
