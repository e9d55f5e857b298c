"""The composition root: builds everything once, passes it in as plain arguments, and runs until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from contextlib import aclosing, closing
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import structlog
from sqlalchemy import Connection

from daemon import log as logging
from daemon import notify, platform
from daemon.api.server import Server
from daemon.artifacts.verify import verify
from daemon.box.address import BoxAddress
from daemon.box.box import Box
from daemon.box.keys import own_key
from daemon.box.meter import CountBytes
from daemon.clock import SteadyClock, SystemClock
from daemon.control.commands import Commands
from daemon.control.leadership import hold_lock
from daemon.control.moving import refuse_moved
from daemon.control.operate import Operator, presume_work, recover
from daemon.control.reconcile import Reconciler
from daemon.control.supervisor import Supervisor
from daemon.control.world import Connect, World
from daemon.domain.holds import HoldReason
from daemon.errors import HomeportError, StoreError, from_system
from daemon.market.vast import Vast
from daemon.service import notify_socket
from daemon.service.program import read_environment
from daemon.settings import Paths, Settings, api_key, load
from daemon.store import backups, clock_step, events, jobs, leader, leases, migrate
from daemon.store.database import Database

log = structlog.get_logger()
COPY_LOOK_S = 60.0


async def lead(settings: Settings) -> None:
    """Lead, reconcile, drive, answer. Returns on SIGTERM or SIGINT; raises HomeportError when it cannot begin."""
    clock, paths = SteadyClock(SystemClock()), settings.paths
    with closing(hold_lock(paths.lock)), closing(open_store(paths, clock.wall_ms())) as database:
        refuse_moved(database)
        take_leadership(database, platform.machine_id(), clock)
        own_key(paths.ssh_key)
        async with aclosing(Vast(settings.market_url, api_key(paths), clock, settings.time_scale)) as market:
            operator = Operator(database, market, clock, settings)
            await run(World(database, operator, clock, settings, notify.sender(settings), _connect(settings), verify))


def open_store(paths: Paths, now_ms: int) -> Database:
    """The database, of the schema that this program knows. Raises StoreError for a newer or a lost one."""
    backups.refuse_lost(paths.database, paths.backups)
    database = Database(paths.database)
    try:
        migrate.migrate(database, paths.backups, now_ms)
    except BaseException:
        database.close()
        raise
    return database


def take_leadership(database: Database, machine: str, clock: SteadyClock) -> None:
    """Fence whoever led before, settle what they left open, and go on at their time. The caller holds the lock."""
    with database.read() as c:
        clock.not_before(clock_step.newest(c))
    now_ms = clock.wall_ms()
    leader.take(database, machine, now_ms, lambda c, epoch, why: _hold_all(c, now_ms, epoch, why))
    recover(database, now_ms)


def supervise(world: World) -> Supervisor:
    """The supervisor of `world` with its reconciler."""
    reconciler = Reconciler(world.database, world.operator, world.clock, world.settings.timing)
    return Supervisor(world, reconciler, notify_socket.teller())


async def run(world: World) -> None:
    """Drive every job and answer requests until a signal comes. Raises Fenced when a newer daemon leads."""
    supervisor = supervise(world)
    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
    api = Server(world.settings, Commands(world, supervisor.changed), version("homeport"))
    await api.start()
    copying = asyncio.create_task(_keep_copies(world))
    log.info("daemon.ready", epoch=world.database.epoch, market=world.settings.market_url)
    try:
        await supervisor.run()
    finally:
        copying.cancel()
        await api.stop()


async def _keep_copies(world: World) -> None:
    """A copy of the database every hour in which it changed."""
    database, folder = world.database.path, world.settings.paths.backups
    while True:
        try:
            world.database.stay_in_place()
            if backups.is_due(database, folder, world.clock.wall_ms()):
                await asyncio.to_thread(backups.copy, database, folder, world.clock.wall_ms())
        except (StoreError, OSError) as error:  # a full disk: the jobs go on, and the copy is due again
            log.warning("backup.failed", error=str(error))
        except Exception:  # without this loop no copy is made any more: it never ends
            log.exception("backup.crashed")
        await asyncio.sleep(COPY_LOOK_S)


def _connect(settings: Settings) -> Connect:
    """Boxes over SSH, with our own key."""

    def connect(address: BoxAddress, count: CountBytes) -> Box:
        return Box(address, settings.paths.ssh_key, on_bytes=count, patience_s=settings.timing.transfer_patience)

    return connect


def _hold_all(c: Connection, now_ms: int, epoch: int, doubt: str) -> None:
    """The database is not the one we left: every unfinished job waits for its person."""
    events.add(c, "daemon.restored", now_ms, why=doubt)
    for job in jobs.unfinished(c):
        jobs.hold(c, job, HoldReason.RESTORED, doubt, now_ms, epoch)
    for lease in leases.held(c):
        presume_work(c, lease, now_ms, epoch)


def serve(settings: Settings) -> None:
    """`jobd` and `jobctl serve`: until SIGTERM or SIGINT. Exits with the error's own code when it cannot begin."""
    console = sys.stderr is not None and sys.stderr.isatty()  # there is none under pythonw, as a Windows service
    logging.configure(settings.paths.log, console=console)
    try:
        asyncio.run(lead(settings))
    except HomeportError as error:
        log.error("daemon.ended", error=error.message)
        _refuse(error)


def _refuse(error: HomeportError) -> NoReturn:
    print(f"jobd: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"Try: {error.hint}", file=sys.stderr)
    sys.exit(error.exit_code)


def main() -> None:
    """`jobd`. The background service keeps its environment in a file (service/program.py)."""
    parser = argparse.ArgumentParser(prog="jobd", description="The daemon of homeport; `jobctl serve` is the same.")
    parser.add_argument("--env-file", type=Path, help="variables to set first, one NAME=VALUE a line")
    arguments = parser.parse_args()
    try:
        if arguments.env_file is not None:
            os.environ.update(read_environment(arguments.env_file))
        settings = load()
    except HomeportError as error:
        _refuse(error)
    try:
        serve(settings)
    except OSError as error:  # of a folder or file that is not ours, or a disk that takes no writes
        _refuse(from_system(error))


if __name__ == "__main__":
    main()
