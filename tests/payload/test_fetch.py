"""The base model from a hub: fetched once, from bootstrap on, and the line that it comes over."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import COMMIT, REPO, Hub, hub_of
from payload_box import REPOSITORY, Box, wait_for
from test_image import bootstrap, root  # noqa: F401  # a fixture

from remote_payload import fetch, host
from remote_payload.contract import Exit, ModelSource, Needs, dump
from remote_payload.layout import Layout

MakeBox = Callable[..., Box]
FROM_HUB = ModelSource(REPO, REPO, COMMIT)


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[Hub]:
    with hub_of(tiny_model) as made:
        yield made


def test_bootstrap_begins_and_prepare_asks_for_nothing_again(
    root: Path,  # noqa: F811
    make_box: MakeBox,
    box_python: Path,
    hub: Hub,
) -> None:
    """The download runs beside the installing; `prepare` waits for it, and no file is sent twice."""
    done = bootstrap(root, box_python, HF_ENDPOINT=hub.url, HOMEPORT_MODEL=REPO, HOMEPORT_REVISION=COMMIT)
    assert done.returncode == Exit.OK, done.stderr
    wait_for((root / fetch.WHOLE).exists, "the model came in the background")
    box = make_box()
    box.set(model=FROM_HUB)
    box.layout.model.unlink()
    for name in ("model", fetch.WHOLE):
        (root / name).rename(box.layout.root / name)

    prepared = box.call("prepare", HF_ENDPOINT=hub.url)

    assert prepared.returncode == Exit.OK, prepared.stdout + prepared.stderr
    assert set(hub.sent.values()) == {1}
    assert (box.layout.model / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_model_that_a_power_cut_damaged_is_fetched_again(tmp_path: Path, box_python: Path, hub: Hub) -> None:
    """The marker outlived the file's bytes: what has another size is asked for once more, and nothing else."""
    command = [box_python, "-m", "remote_payload.fetch", "--root", tmp_path, "--repo", REPO, "--revision", COMMIT]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    environment |= {"HF_ENDPOINT": hub.url}
    subprocess.run(command, env=environment, check=True)
    weights = Layout(tmp_path).model / "model.safetensors"
    os.truncate(weights, 0)

    subprocess.run(command, env=environment, check=True)

    assert weights.read_bytes() == hub.files["model.safetensors"]
    assert {name: times for name, times in hub.sent.items() if times > 1} == {"model.safetensors": 2}


def test_what_the_hub_does_not_bring_is_named(tmp_path: Path, box_python: Path, hub: Hub) -> None:
    """A repository without its weights is no model: the fetch fails with the name of what is missing."""
    del hub.files["model.safetensors"]
    command = [box_python, "-m", "remote_payload.fetch", "--root", tmp_path, "--repo", REPO, "--revision", COMMIT]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}

    done = subprocess.run(command, env=environment | {"HF_ENDPOINT": hub.url}, capture_output=True, text=True)

    assert done.returncode != Exit.OK
    assert "did not bring model.safetensors" in done.stderr
    assert not (tmp_path / fetch.WHOLE).exists()


def line(box: Box, **environment: str) -> dict[str, Any]:
    needs = Needs(model=FROM_HUB)
    code = (
        f"import json; from remote_payload import host\nfrom remote_payload.contract import *\n"
        f"print(json.dumps(host.line_check(load(Needs, {dump(needs)!r})).__dict__))"
    )
    (box.layout.root / "ask.py").write_text(code)
    ended = box.begin("ask", **environment)
    assert ended.wait() == 0, (box.layout.root / "stderr").read_text()
    return dict(json.loads((box.layout.root / "stdout").read_text().splitlines()[-1]))


def test_the_line_is_looked_at(make_box: MakeBox, hub: Hub) -> None:
    """A hub that answers fast passes, one that cannot be reached does not, one that refuses is for `prepare` to say."""
    box = make_box()

    assert line(box, HF_ENDPOINT=hub.url)["ok"] is True
    assert line(box, HF_ENDPOINT="http://127.0.0.1:9")["ok"] is False
    hub.refuse = True
    refused = line(box, HF_ENDPOINT=hub.url)
    assert refused["ok"] is True and "refuses" in refused["detail"]


def test_a_line_that_needs_hours_fails(make_box: MakeBox, hub: Hub) -> None:
    """At 64 KB a second a model of 2 GB would take nine hours."""
    box = make_box()
    hub.pause_s = 1.0
    hub.files["model.safetensors"] = bytes(2 << 20)
    hub.claimed["model.safetensors"] = 2 << 30

    found = line(box, HF_ENDPOINT=hub.url)

    assert found["ok"] is False and "minutes" in found["detail"]


@pytest.mark.parametrize(("needed", "ok"), [(0, True), (1 << 60, False)])
def test_room(tmp_path: Path, needed: int, ok: bool) -> None:
    """Disk and memory are held against what the job needs; what it has written already counts as room."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_bytes(bytes(1000))

    assert host.disk_check(tmp_path, needed).ok is ok
    assert host.memory_check(needed).ok is ok
    assert host.size_of("run", tmp_path) == 1000
