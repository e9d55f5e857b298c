"""What several files here begin with: a home whose daemon answers what a test says, and a market that does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scripted import CANARY, Run, Scripted, running
from scripted_vast import ACCOUNT, KEY, ME, TIME_SCALE, Said, ScriptedMarket, served
from stored import Stored

from daemon import settings
from daemon.cli.jobctl import jobctl
from daemon.clock import SystemClock
from daemon.market.vast import Vast
from daemon.settings import Settings


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    monkeypatch.setenv("VAST_API_KEY", f"{CANARY}-last")
    monkeypatch.setenv("HF_TOKEN", CANARY)
    return settings.load()


@pytest.fixture
def stored(config: Settings) -> Stored:
    return Stored(config.paths.database)


@pytest.fixture
def commands(config: Settings, stored: Stored) -> Iterator[Scripted]:
    scripted = Scripted()
    with running(config, scripted):
        yield scripted


@pytest.fixture
def run(config: Settings) -> Run:
    def invoke(*args: str, typed: str | None = None) -> Result:
        return CliRunner().invoke(jobctl, args, input=typed, catch_exceptions=False)

    return invoke


@pytest.fixture
async def market() -> AsyncIterator[ScriptedMarket]:
    async with served(ScriptedMarket()) as scripted:
        scripted.answers(ACCOUNT, Said(body=ME))
        yield scripted


@pytest.fixture
async def vast(market: ScriptedMarket) -> AsyncIterator[Vast]:
    client = Vast(market.url, KEY, SystemClock(), TIME_SCALE)
    yield client
    await client.aclose()
