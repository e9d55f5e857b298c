"""The documents against the code: links, commands, and every key, verb and exit code where a person looks it up."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from daemon import settings
from daemon.cli.exits import MEANING
from daemon.cli.jobctl import VERBS, jobctl
from daemon.domain import money
from daemon.domain.spec import NOT_YET, JobSpec

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


each_page = pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The ids that a reader's browser gives the headings of `page`."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def lines_of_code(page: Path) -> Iterator[str]:
    for block in FENCE.findall(text_of(page)):
        yield from block.splitlines()


def rows(page: Path) -> dict[str, list[str]]:
    """Table rows of `page` by the text of their first cell, without backticks."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text_of(page).splitlines() if line.startswith("|")]
    return {row[0].replace("`", "").strip(): [cell.strip() for cell in row[1:]] for row in cells}


@each_page
def test_links_resolve(page: Path) -> None:
    """A relative link leads to a file of the repository, and its anchor to a heading there."""
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@each_page
def test_commands_exist(page: Path) -> None:
    """Every make target, jobctl verb and option in a block of code is one that there is."""
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for line in lines_of_code(page):
        command = line.split("#")[0]
        for target in re.findall(r"^make ([\w-]+)", command):
            assert target in targets, line
        for verb, arguments in re.findall(r"(?:^|[ /])jobctl ([\w-]+)([^|]*)", command):
            assert verb in VERBS, line
            assert set(re.findall(r"(?<= )--?[a-z][\w-]*", arguments)) <= options(verb), line


@each_page
def test_named_files_exist(page: Path) -> None:
    """A module that a page names, by its path or the end of it, is there."""
    code = [p.as_posix() for top in ("daemon", "remote_payload", "tests", "docs") for p in (ROOT / top).rglob("*.*")]
    for path in re.findall(r"`([\w/.-]+\.(?:py|sh))`", text_of(page)):
        assert any(file.endswith(f"/{path}") for file in code), path


def test_every_folder_has_its_row() -> None:
    """architecture.md names each folder of the daemon, and the folders beside it that hold code."""
    folders = {f"daemon/{p.parent.name}/" for p in (ROOT / "daemon").glob("*/__init__.py")}
    table = rows(DOCS / "architecture.md")

    assert folders | {"remote_payload/", "migrations/"} <= table.keys()


def options(verb: str) -> set[str]:
    """Every spelling of every option of a verb, its subcommands' included."""
    command = jobctl.get_command(click.Context(jobctl), verb)
    assert command is not None
    commands = [command, *command.commands.values()] if isinstance(command, click.Group) else [command]
    return {name for each in commands for param in each.params for name in param.opts}


def test_every_kind_of_event_has_its_row() -> None:
    """training.md names each kind of line that the payload writes to events.jsonl, and no other."""
    emitted = re.compile(r"\bemit\(\s*\"(\w+)\"")
    kinds = {kind for file in (ROOT / "remote_payload").glob("*.py") for kind in emitted.findall(text_of(file))}
    section = text_of(DOCS / "training.md").partition("### events.jsonl")[2].partition("\n## ")[0]

    assert kinds == set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_every_verb_has_its_section() -> None:
    """cli.md has one section a verb with at least two examples, and no others."""
    sections = re.split(r"^### ", text_of(DOCS / "cli.md"), flags=re.MULTILINE)[1:]
    documented = {section.split("\n", 1)[0]: section for section in sections}

    assert documented.keys() == VERBS.keys()
    for verb, section in documented.items():
        assert len(re.findall(rf"jobctl {verb}\b", section)) >= 2, verb


def test_exit_codes_are_the_programs() -> None:
    """The table of exit codes says what `jobctl --help` says."""
    table = rows(DOCS / "cli.md")

    assert {str(int(code)): [meaning] for code, meaning in MEANING.items()}.items() <= table.items()


def spec_fields(model: type[BaseModel] = JobSpec, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of the job file with its default."""
    for name, field in model.model_fields.items():
        block = next((t for t in _members(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)
        if block is not None:
            yield from spec_fields(block, f"{prefix}{name}.")
        else:
            yield prefix + name, field.default


def _members(annotation: object) -> tuple[object, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def written(key: str, default: object) -> str:
    """A default as configuration.md writes it."""
    if default is PydanticUndefined:
        return "required"
    match default:
        case None:
            return "-"
        case bool():
            return str(default).lower()
        case tuple():
            return f"[{', '.join(default)}]"
        case int() if key == "limits.hold":
            return money.show(default)
        case int() | float():
            return f"{default:g}"
    return str(default)


def test_every_key_of_the_job_file_is_documented() -> None:
    """configuration.md has a row for each key of the job file with the code's default, and names what is refused."""
    table = rows(DOCS / "configuration.md")
    reserved = text_of(DOCS / "configuration.md").partition("Reserved words")[2]

    for key, default in spec_fields():
        assert key in table, key
        assert table[key][0] == written(key, default), key
    for where in NOT_YET:
        assert f"`{'.'.join(where)}`" in reserved


def test_every_key_of_the_configuration_is_documented() -> None:
    """configuration.md has a row for each key of config.toml, and the image's defaults are those of the code."""
    table = rows(DOCS / "configuration.md")
    image = settings.Image()

    assert settings._TOP - {"image"} <= table.keys()
    for field in dataclasses.fields(image):
        assert table[f"[image] {field.name}"][0] == written(field.name, getattr(image, field.name))


def test_every_variable_of_the_environment_is_documented() -> None:
    """A variable that the daemon or jobctl asks for by name is in configuration.md."""
    code = "\n".join(text_of(p) for p in (ROOT / "daemon").rglob("*.py") if "sandbox" not in p.parts)
    asked = set(re.findall(r"""(?:env(?:iron)?(?:\.get)?[(\[]"([A-Z_]+)"|"([A-Z_]+)" (?:not )?in os\.environ)""", code))
    names = {first or second for first, second in asked} - {"HOME", "TERM", "XDG_CONFIG_HOME"}  # every program's

    assert {"HOMEPORT_HOME", "VAST_API_KEY", "VAST_URL", "HF_TOKEN", "NO_COLOR"} <= names
    assert names <= rows(DOCS / "configuration.md").keys()
