"""The installed jobd, killed by SIGKILL at one commit: crashing_jobd.py KIND before|after [N].

KIND is an event kind. The N-th transaction (from 1) that writes such an event is never committed ("before"), or it is
on the platter but nothing after it has happened ("after"). Nothing of the daemon is changed: SQLAlchemy's own hooks
watch the statements.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sqlalchemy import Engine, event

KIND, WHEN, NTH = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1
seen = {"count": 0, "armed": False}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@event.listens_for(Engine, "before_cursor_execute")
def watch(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
    if statement.startswith("INSERT INTO events") and KIND in parameters:
        seen["count"] += 1
        seen["armed"] |= seen["count"] == NTH  # one transaction may write several


@event.listens_for(Engine, "commit")
def committing(connection: Any) -> None:
    if not seen["armed"]:
        return
    if WHEN == "before":
        die()
    connection.connection.dbapi_connection.commit()
    die()


if __name__ == "__main__":
    from daemon.app import main

    del sys.argv[1:]  # ours, not jobd's
    main()
