"""`notify test`: does a message reach the person?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import click

from daemon.cli.exits import Exit
from daemon.cli.terminal import cleaned, emit_json, examples


@click.command(epilog=examples("jobctl notify test", "jobctl notify test --json"))
@click.argument("what", type=click.Choice(["test"]))
@click.option("--json", "as_json", is_flag=True, help="What became of the message on each channel, as JSON.")
def notify(what: str, as_json: bool) -> None:
    """Send a test message on every channel, and say of each whether it went out. Exit 1 when none did."""
    from daemon import notify as channels
    from daemon import settings

    loaded = settings.load()
    title, text = "homeport: a test", "Messages reach you. Next: jobctl status"

    async def send() -> list[channels.Outcome]:
        sent = [await channels.desktop(title, text)]
        if loaded.notify_url is not None:
            sent.append(await channels.post(loaded.notify_url, title, text))
        return sent

    outcomes = asyncio.run(send())
    if as_json:
        emit_json({"schema": "homeport.notify/1", "channels": [cleaned(asdict(outcome)) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            click.echo(f"{'sent' if outcome.delivered else 'FAILED':<8}{outcome.channel:<12}{cleaned(outcome.detail)}")
        if loaded.notify_url is None:
            click.echo(f"{'unset':<8}{'notify_url':<12}set it in {loaded.paths.config_file} to be told on your phone")
    if not any(outcome.delivered for outcome in outcomes):
        raise SystemExit(Exit.FAILED)
