"""`export` and `import`: everything that lives goes to another computer, and the old one drives nothing any more."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from daemon import settings
from daemon.cli.path import writing
from daemon.cli.terminal import cleaned, examples, size
from daemon.service.holder import refuse_running


@click.command(epilog=examples("jobctl export ~/homeport.export", "jobctl down && jobctl export /media/stick/home.tar"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def export(file: Path) -> None:
    """Write everything that lives into FILE for another computer. The daemon must be down, and stays down here.

    Database, SSH key, data, and what came home of unfinished jobs; not the market key, nor models that are finished.
    """
    from daemon.control import moving

    loaded = settings.load()
    refuse_running(loaded.paths, f"jobctl export {shlex.quote(str(file))}")
    with writing(file):
        moved = moving.export_home(loaded, file)
    click.echo(f"{file}  {size(moved.size)}: {len(moved.jobs)} unfinished jobs ({cleaned(', '.join(moved.jobs))})")
    click.echo("This home drives nothing any more. On the other computer, once: jobctl import FILE, then jobctl up")
    click.echo("The file holds your SSH key: delete it afterwards.", err=True)


@click.command(name="import", epilog=examples("jobctl import homeport.export", "jobctl import /media/stick/home.tar"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
def import_(file: Path) -> None:
    """Make this computer the home of what `export` wrote into FILE. Import it on one computer only."""
    from daemon.control import moving

    loaded = settings.load()
    refuse_running(loaded.paths, f"jobctl import {shlex.quote(str(file))}")
    moved = moving.import_home(loaded, file)
    click.echo(f"{len(moved.jobs)} unfinished jobs live here now ({cleaned(', '.join(moved.jobs))}). Next: jobctl up")
    for note in moved.notes:
        click.echo(f"note: {cleaned(note)}")
