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
    """Send a test message on every channel, and say of each whether it went out. Exit 1 when one failed, or none is."""
    from daemon import notify as channels
    from daemon import settings

    loaded = settings.load()
    title, text = "homeport: a test", "Messages reach you. Next: jobctl status"
    unset = f"set it in {loaded.paths.config_file} to be told on your phone"

    async def send() -> list[channels.Outcome]:
        if loaded.notify_url is None:
            phone = channels.Outcome("notify_url", False, unset, present=False)
        else:
            phone = await channels.post(loaded.notify_url, title, text)
        return [await channels.desktop(title, text), phone]

    outcomes = asyncio.run(send())
    if as_json:
        emit_json({"schema": "homeport.notify/1", "channels": [cleaned(asdict(outcome)) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            result = "sent" if outcome.delivered else "FAILED" if outcome.present else "absent"
            click.echo(f"{result:<8}{outcome.channel:<12}{cleaned(outcome.detail)}")
    present = [outcome for outcome in outcomes if outcome.present]
    if not present or not all(outcome.delivered for outcome in present):
        raise SystemExit(Exit.FAILED)
