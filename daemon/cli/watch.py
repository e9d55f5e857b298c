"""Looking on: screens drawn again and again, waits, and a Ctrl-C that only ends the looking."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from daemon.cli.exits import Exit
from daemon.cli.terminal import Look, look

EVERY_S = 2.0
HOME_AND_CLEAR = "\x1b[H\x1b[2J"


@contextmanager
def detaching(come_back: str) -> Iterator[None]:
    """Ctrl-C inside says that the job goes on and how to come back, and exits 130."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\ndetached; jobs go on.   Come back with: {come_back}", err=True)
        raise SystemExit(Exit.INTERRUPTED) from None


def watch(draw: Callable[[Look], Exit], *, come_back: str, clear: bool) -> NoReturn:
    """Draw every two seconds until Ctrl-C. `clear`: one screen in place, where there is a terminal."""
    with detaching(come_back):
        while True:
            drawn = look()
            if clear and drawn.live:
                click.echo(HOME_AND_CLEAR, nl=False)
            draw(drawn)
            time.sleep(EVERY_S)
