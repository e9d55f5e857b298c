"""`serve`, `sandbox` and `demo`: what runs until it is done or stopped."""

from __future__ import annotations

from pathlib import Path

import click

from daemon.cli.terminal import examples


@click.command(epilog=examples("jobctl serve", "HOMEPORT_HOME=/srv/homeport jobctl serve"))
def serve() -> None:
    """Run the daemon here until Ctrl-C or SIGTERM. Leaving destroys nothing: what is rented goes on."""
    from daemon import app, settings

    app.serve(settings.load())


@click.group(epilog=examples("jobctl sandbox serve", "jobctl sandbox serve --port 8900 --time-scale 60"))
def sandbox() -> None:
    """A local market in place of Vast.ai, with local machines: what the demo and the tests rent from."""


@sandbox.command(name="serve", epilog=examples("jobctl sandbox serve", "jobctl sandbox serve --dir /tmp/market"))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port on loopback; 0 takes a free one.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where ledger and machines live.")
@click.option("--time-scale", type=click.FloatRange(min=1.0), default=1.0, help="Divides every wait of the market.")
@click.option("--image", "images", multiple=True, metavar="NAME=PYTHON", help="An image and its interpreter.")
def sandbox_serve(port: int, folder: Path | None, time_scale: float, images: tuple[str, ...]) -> None:
    """Print one JSON line {"url","api_key","dir","time_scale"} and serve until stopped."""
    from daemon import settings
    from daemon.sandbox.serve import Sandbox, run

    if wrong := [image for image in images if "=" not in image]:
        raise click.UsageError(f"--image {wrong[0]!r}: expected NAME=PYTHON")
    pythons = dict(image.split("=", 1) for image in images)
    run(Sandbox(folder or settings.paths().state / "sandbox", port, time_scale, pythons))


@click.command(epilog=examples("jobctl demo --quick", "jobctl demo --quick --chaos"))
@click.option("--quick", is_flag=True, help="A nano model, about a minute.")
@click.option("--chaos", is_flag=True, help="Four things go wrong on the way, and are survived.")
@click.option(
    "--image",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="The folder of the machines' environment; made there if need be.",
)
def demo(quick: bool, chaos: bool, image: Path | None) -> None:
    """Rent, train, convert, download, verify and destroy, all on this computer. Spends $0.00."""
    from daemon.cli import demo as line

    raise SystemExit(line.run(quick=quick, chaos=chaos, image_folder=image))
