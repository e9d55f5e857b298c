"""The table of verbs, their help, and what is refused before anybody is asked."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from daemon.cli.exits import MEANING, Exit
from daemon.cli.jobctl import VERBS, jobctl
from daemon.cli.submit import request_id


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_with_two_examples(verb: str) -> None:
    """--help of every verb in the table works and ends in at least two lines that can be typed."""
    result = CliRunner().invoke(jobctl, [verb, "--help"])

    examples = result.stdout.partition("Examples:")[2].strip().splitlines()
    assert result.exit_code == 0
    assert len([line for line in examples if f"jobctl {verb}" in line]) >= 2


def test_help_lists_every_verb_and_every_exit_code() -> None:
    """The first thing a newcomer types shows the whole language."""
    help_text = CliRunner().invoke(jobctl, ["-h"]).stdout

    assert all(f"\n  {verb} " in help_text for verb in VERBS)
    assert all(f"\n  {code.value} " in help_text for code in Exit)
    assert set(MEANING) == set(Exit)


@pytest.mark.parametrize(("typed", "meant"), [("sumbit", "submit"), ("satus", "status"), ("write_off", "write-off")])
def test_a_misspelt_verb_is_recognised(typed: str, meant: str) -> None:
    """A near miss is exit 2 with the verb that was meant."""
    result = CliRunner().invoke(jobctl, [typed])

    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.stderr


MISUSED = [
    ["show"],
    ["logs"],
    ["sandbox", "serve", "--port", "99999"],
    ["logs", "k7f", "--daemon"],
    ["logs", "--daemon", "-f"],
    ["logs", "--daemon", "--json"],
    ["wait", "k7f", "--timeout", "nans"],
    ["wait", "k7f", "--timeout", "-1h"],
    ["wait", "k7f", "--for", "NOWHERE"],
    ["wait", "k7f", "--timeout", "8"],
    ["retry", "k7f", "--from", "merge"],
    ["write-off", "not-a-number"],
    ["submit", "no-such-file.yaml"],
    ["data-check", "no-such-file.jsonl"],
    ["sandbox", "serve", "--image", "nano"],
    ["offers", "--max-price", "cheap"],
    ["fetch", "--instance", "-5", "--path", "x", "--to", "y"],
    ["write-off", "--confirm", "5", "--", "-5"],
]


@pytest.mark.parametrize("args", MISUSED, ids=" ".join)
def test_wrong_usage_is_exit_2(args: list[str]) -> None:
    """What is wrong with the words themselves is found before the daemon is asked."""
    assert CliRunner().invoke(jobctl, args).exit_code == 2


def test_the_request_id_names_text_and_folder() -> None:
    """Same text and folder, same id; another text or folder, another id; no text can imitate a folder."""
    assert request_id("a", "/x") == request_id("a", "/x")
    assert len({request_id("a", "/x"), request_id("b", "/x"), request_id("a", "/y"), request_id("", "/x\0a")}) == 4
