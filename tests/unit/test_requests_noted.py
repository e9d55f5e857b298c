"""What leaves is noted beside the database: an older copy that is put back has forgotten it, and that is seen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import func, select
from store import add_job, add_lease, opened

from daemon.clock import ManualClock
from daemon.control.operate import Operator
from daemon.settings import Paths, Settings
from daemon.store import high_water, leases, schema


async def test_a_request_is_noted_before_it_leaves(tmp_path: Path) -> None:
    """Forgotten, a machine that was told to train would count as unused, and the stage would run on another one too."""
    database = opened(tmp_path)
    seen: list[tuple[int, int]] = []

    async def stop(instance: int) -> Any:
        with database.read() as c:
            newest = c.execute(select(func.max(schema.events.c.id))).scalar_one()
        noted = high_water.read(tmp_path / high_water.NAME)
        seen.append((newest, noted.event if noted else -1))
        return SimpleNamespace(status=200, body="{}")

    settings = Settings(Paths(tmp_path, tmp_path, tmp_path))
    operator = Operator(database, SimpleNamespace(stop=stop), ManualClock(), settings)  # type: ignore[arg-type]
    with database.write() as c:
        add_job(c)
        lease = leases.get(c, add_lease(c))

    await operator.stop(lease, "held")
    database.close()

    [(newest, noted)] = seen
    assert noted == newest
