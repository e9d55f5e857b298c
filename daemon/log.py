"""The daemon's log: JSON lines in a file for machines, short lines on standard error for the person who runs it.

An event is a constant name with fields (`lease.created`, `price_per_hour=410000`). Fields whose names say that they are
secret are masked here, as the last line of defence: they are not to be logged in the first place.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

FILE_BYTES = 10 << 20
FILES = 3
CHATTY = ("asyncssh", "httpx", "httpcore", "uvicorn", "transitions", "alembic")  # each connection, each callback
SECRET = ("key", "token", "secret", "password", "authorization")
PUBLIC = frozenset({"host_key", "public_key", "tokens", "max_tokens", "token_id"})


def configure(file: Path, *, console: bool) -> None:
    """Set logging up, once, by app.py. `console`: also to standard error. The file is private to this user."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.touch(mode=0o600)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask,
    ]
    logging.raiseExceptions = False  # else each line that a full disk refuses is a traceback on the screen
    root = logging.getLogger()
    root.handlers = [_to(logging.handlers.RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=FILES), shared)]
    if console:
        root.handlers.append(_to(logging.StreamHandler(sys.stderr), shared, colour=sys.stderr.isatty()))
    root.setLevel(logging.INFO)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def mask(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide the value of every field that is named like a secret."""
    for name in event:
        if name not in PUBLIC and any(word in name.lower() for word in SECRET):
            event[name] = "***"
    return event


def _to(
    handler: logging.Handler, shared: list[structlog.typing.Processor], *, colour: bool | None = None
) -> logging.Handler:
    """`handler` writing JSON, or lines for a person when `colour` says whether they may be coloured."""
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if colour is None
        else structlog.dev.ConsoleRenderer(colors=colour, exception_formatter=structlog.dev.plain_traceback)
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    return handler
