"""The sandbox as a process: wires the parts over one directory and serves until it is told to stop.

``jobctl sandbox serve`` and ``python -m daemon.sandbox.serve`` print one line of JSON - url, api_key, dir, time_scale -
as soon as requests are taken. A second start on the same directory goes on where the first one ended, however it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from . import images
from .boxes import Boxes
from .door import HOST, Door, listen
from .front import DroppableHTTP, Front
from .ledger import Ledger
from .life import TICK_S, Life
from .limits import Limiter
from .mishaps import Mishaps
from .observer import Observer
from .orders import Orders
from .provider import Provider, Refusal
from .routes import Api, objected

LEDGER_FILE = "ledger.sqlite"
NOT_WHAT_IT_TAKES = (ValueError, KeyError, TypeError, AttributeError)  # what a route makes of a body of another shape


@dataclass(frozen=True)
class Sandbox:
    """What a sandbox is started with. `port` 0: the port of the last start, else a free one."""

    dir: Path
    port: int = 0
    time_scale: float = 1.0
    images: dict[str, str] = field(default_factory=dict)  # name or shell pattern -> interpreter
    rate_limits: bool = True


async def serve(sandbox: Sandbox, announce: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT; every process of every box ends with it. Raises OSError when the port is taken."""
    root = sandbox.dir.resolve()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    ledger = Ledger(root / LEDGER_FILE)
    listener = listen(sandbox.port or int(ledger.remembered("port") or 0))
    port = listener.getsockname()[1]
    ledger.remember("port", str(port))
    url = f"http://{HOST}:{port}"
    boxes = Boxes(root, url)
    provider = Provider(ledger, images.read(root, sandbox.images), sandbox.time_scale)
    life = Life(provider, boxes)
    orders = Orders()
    door = Door(port, lambda: protocol(server), DroppableHTTP.drop_all, lambda: server.servers)
    mishaps = Mishaps(provider, life, boxes, door.shut)
    observer = Observer(ledger, boxes, mishaps, orders)
    app = Starlette(
        routes=[*Api(provider, boxes, url).routes(), *observer.routes()],
        exception_handlers=dict.fromkeys((Refusal, *NOT_WHAT_IT_TAKES), objected),
    )
    limiter = Limiter(sandbox.time_scale) if sandbox.rate_limits else None
    server = uvicorn.Server(
        uvicorn.Config(
            Front(app, ledger, orders, limiter, mishaps.strike),
            http=DroppableHTTP,
            ws="none",
            lifespan="off",
            log_level="error",
            loop="asyncio",
            timeout_graceful_shutdown=1,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn ends on these, then raises them again: without a handler of ours the boxes would be left running.
        signal.signal(number, lambda *_: None)
    life.recover()
    living = asyncio.create_task(_live(life))
    living.add_done_callback(lambda _: setattr(server, "should_exit", True))  # a dead clock must not go unseen
    announce(json.dumps({"url": url, "api_key": ledger.api_key, "dir": str(root), "time_scale": sandbox.time_scale}))
    try:
        await server.serve(sockets=[listener])
    finally:
        living.cancel()
        await asyncio.wait([living])
        await life.switch_everything_off()
        ledger.close()
    if not living.cancelled():
        living.result()  # raises what it ended of


async def _live(life: Life) -> None:
    while True:
        await life.tick()
        await asyncio.sleep(TICK_S)


def protocol(server: uvicorn.Server) -> DroppableHTTP:
    """The protocol of one more connection of `server`, as it makes them itself."""
    return DroppableHTTP(config=server.config, server_state=server.server_state, app_state=server.lifespan.state)


def run(sandbox: Sandbox) -> None:
    """`serve` for callers without an event loop."""
    asyncio.run(serve(sandbox, lambda line: print(line, flush=True)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m daemon.sandbox.serve", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("sandbox"), help="everything the sandbox keeps")
    parser.add_argument("--port", type=int, default=0, help="default: that of the last start, else a free one")
    parser.add_argument("--time-scale", type=float, default=1.0, help="divides the market's delays and intervals")
    parser.add_argument(
        "--image", action="append", default=[], metavar="NAME=PYTHON", help="interpreter of a box image"
    )
    parser.add_argument("--no-rate-limits", action="store_true")
    given = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in given.image)
    run(Sandbox(given.dir, given.port, given.time_scale, pythons, not given.no_rate_limits))


if __name__ == "__main__":
    main()
