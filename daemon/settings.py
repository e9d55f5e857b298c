"""Configuration: where things lie, how long we wait, which image a machine runs.

Read once at start from `config.toml` and the environment; nothing else in the daemon reads either. `HOMEPORT_HOME`
moves everything (configuration, state, models) under one folder.
"""

from __future__ import annotations

import codecs
import os
import shlex
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from daemon import platform
from daemon.errors import CredentialsRefused, HomeportError

_T = TypeVar("_T")
VAST_URL = "https://console.vast.ai"


# A market on this computer may be as fast as it likes: its machines are processes here, which take their time.
LEAST_S = {"boot_patience": 60.0, "ssh_patience": 60.0, "transfer_patience": 5.0}


@dataclass(frozen=True)
class Timing:
    """Every window of the daemon, in seconds; on a loopback market divided by its `time_scale`, LEAST_S at least."""

    reconcile_every: float = 30.0  # a trusted listing while anything may bill
    idle_every: float = 600.0  # a listing while nothing may bill: a late arrival is found even then
    poll_every: float = 10.0  # one look at a box
    create_absent_span: float = 600.0  # awake time that an UNKNOWN create must stay absent
    create_absent_listings: int = 5
    gone_span: float = 30.0  # between the two listings that confirm a destroy
    gone_recheck: float = 86_400.0
    boot_patience: float = 1_200.0  # from create to `running`
    ssh_patience: float = 600.0  # from `running` to the first login
    offline_patience: float = 1_800.0
    transfer_patience: float = 60.0  # without one block moved, before the market is asked for a newer address
    start_patience: float = 600.0
    destroy_resend: float = 60.0
    offer_retry: float = 60.0  # between searches that found nothing
    offer_patience: float = 3_600.0  # of searches that find nothing, before the person is asked
    token_life: float = 900.0
    silence: float = 600.0  # out of contact for so long, and the person is told

    def scaled(self, by: float) -> Timing:
        names = {f.name for f in fields(self)} - {"create_absent_listings"}
        return replace(self, **{name: max(getattr(self, name) / by, LEAST_S.get(name, 0.0)) for name in names})


@dataclass(frozen=True)
class Image:
    """What a rented machine runs. Relative paths are relative to the login directory."""

    ref: str = "vastai/pytorch:2.12.0-cu130-cuda-13.2-mini-py312-2026-06-05"
    root: str = "/workspace/homeport"
    python: str = "/venv/main/bin/python"
    cuda: float = 13.0  # the version that the host's driver must offer; 0 (or false): none needed


@dataclass(frozen=True)
class Paths:
    """Folders and files of one installation."""

    config: Path
    state: Path
    models: Path

    @property
    def database(self) -> Path:
        return self.state / "homeport.db"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def backups(self) -> Path:
        return self.state / "backups"

    @property
    def ssh_key(self) -> Path:
        return self.state / "id_ed25519"

    @property
    def socket(self) -> Path:
        return self.state / "jobd.sock"

    @property
    def address(self) -> Path:
        """Where the daemon says on which loopback port it listens, with the token for systems without unix sockets."""
        return self.state / "jobd.json"

    @property
    def log(self) -> Path:
        return self.state / "jobd.log"

    @property
    def job_folders(self) -> Path:
        """What is kept of each job beside the database: <job>/log.txt and what was rescued."""
        return self.state / "jobs"

    @property
    def data(self) -> Path:
        """Canonical data sets, by content hash."""
        return self.state / "data"

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def key_file(self) -> Path:
        return self.config / "vast_api_key"

    @property
    def environment_file(self) -> Path:
        """What of the environment the background service gets."""
        return self.config / "service.env"

    @property
    def private(self) -> tuple[Path, ...]:
        """For this user alone. The folder hides what lies in it: training rows, logs, copies of the database."""
        return self.state, self.ssh_key, self.database, self.key_file, self.environment_file


@dataclass(frozen=True)
class ApiKey:
    """The market's key and where it came from; only the last four characters are ever shown."""

    value: str = field(repr=False)
    source: str = ""

    @property
    def hint(self) -> str:
        return f"{self.source} (ends in {self.value[-4:]})"


@dataclass(frozen=True)
class Settings:
    paths: Paths
    market_url: str = VAST_URL
    time_scale: float = 1.0
    timing: Timing = field(default_factory=Timing)
    image: Image = field(default_factory=Image)
    demo: bool = False  # marks every screen
    notify_url: str | None = None
    hub: str = "https://huggingface.co"
    box_python: Path = Path(sys.executable)  # has the `[box]` extra, where files are to be rebuilt here


def is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


def paths(env: Mapping[str, str] = os.environ) -> Paths:
    """Folders by HOMEPORT_HOME, else by this system's conventions."""
    if home := env.get("HOMEPORT_HOME"):
        root = Path(home).expanduser().absolute()
        return Paths(config=root / "config", state=root / "state", models=root / "models")
    import platformdirs

    return Paths(
        config=Path(platformdirs.user_config_dir("homeport", appauthor=False)),
        state=Path(platformdirs.user_state_dir("homeport", appauthor=False)),
        models=Path("~/homeport").expanduser(),
    )


_TOP = {"market_url", "models_dir", "time_scale", "demo", "notify_url", "image", "box_python"}


def load(env: Mapping[str, str] = os.environ) -> Settings:
    """Settings from config.toml and the environment. Raises HomeportError naming file and key."""
    where = paths(env)
    raw: dict[str, object] = {}
    if where.config_file.exists():
        try:
            raw = tomllib.loads(where.config_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # unreadable, not UTF-8, not TOML
            why = error.strerror if isinstance(error, OSError) else error
            raise HomeportError(f"{where.config_file}: {why}", hint=f"edit {where.config_file}") from error
    if unknown := sorted(raw.keys() - _TOP):
        raise HomeportError(
            f"{where.config_file}: unknown key {unknown[0]!r}; known are {', '.join(sorted(_TOP))}",
            hint=f"edit {where.config_file}",
        )
    for key in ("models_dir", "market_url", "notify_url", "box_python"):
        _of_kind(str, raw.get(key, ""), where.config_file, key)
    if models := raw.get("models_dir"):
        where = replace(where, models=Path(str(models)).expanduser().absolute())
    url = env.get("VAST_URL") or str(raw.get("market_url", VAST_URL))
    try:
        urlsplit(url).port  # noqa: B018 - it is asked for what it raises: half an IPv6 address, no such port
    except ValueError as error:
        ways = {"VAST_URL": "unset VAST_URL", "market_url": f"edit {where.config_file}"}
        named = "VAST_URL" if env.get("VAST_URL") else "market_url"
        raise HomeportError(f"{named}: {url!r} is no address ({error})", hint=ways[named]) from error
    scale = _number(raw.get("time_scale", 1.0), where.config_file, "time_scale") if is_loopback(url) else 1.0
    return Settings(
        paths=where,
        market_url=url.rstrip("/"),
        time_scale=scale,
        timing=Timing().scaled(scale),
        image=_image(raw.get("image"), where.config_file),
        demo=_of_kind(bool, raw.get("demo", False), where.config_file, "demo"),
        notify_url=str(raw["notify_url"]) if raw.get("notify_url") else None,
        hub=env.get("HF_ENDPOINT") or Settings.hub,
        box_python=Path(str(raw.get("box_python", sys.executable))).expanduser().absolute(),
    )


def _of_kind(kind: type[_T], value: object, file: Path, key: str) -> _T:
    if isinstance(value, kind):
        return value
    wanted = "true or false, without quotes" if kind is bool else "text in quotes"
    raise HomeportError(f"{file}: {key} must be {wanted}, not {value!r}", hint=f"edit {file}")


def _number(value: object, file: Path, key: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise HomeportError(f"{file}: {key} must be a positive number, not {value!r}", hint=f"edit {file}")


def _image(raw: object, file: Path) -> Image:
    if raw is None:
        return Image()
    known = {f.name: f.type for f in fields(Image)}
    if not isinstance(raw, dict) or raw.keys() - known.keys():
        raise HomeportError(f"{file}: [image] takes {', '.join(known)}", hint=f"edit {file}")
    for key in ("ref", "root", "python"):
        _of_kind(str, raw.get(key, ""), file, key)
    cuda = raw.get("cuda", Image.cuda)
    return replace(Image(), **{**raw, "cuda": _number(cuda, file, "cuda") if cuda else 0.0})


def api_key(where: Paths, env: Mapping[str, str] = os.environ) -> ApiKey:
    """The market's key: VAST_API_KEY, our own file (0600), or Vast's own file. Raises CredentialsRefused."""
    if value := env.get("VAST_API_KEY", "").strip():
        return _one_word(value, "VAST_API_KEY")
    if where.key_file.exists():
        if platform.open_to_others(where.key_file):
            mend = f"chmod 600 {shlex.quote(str(where.key_file))}"
            raise CredentialsRefused(f"{where.key_file} can be read by others", hint=mend)
        return _one_word(_text(where.key_file), str(where.key_file))  # an empty one is no leave to use another's
    config = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or Path.home()) / ".config")
    vast = config / "vastai" / "vast_api_key"
    if vast.exists() and (value := _text(vast)):
        return _one_word(value, str(vast))
    raise CredentialsRefused(
        f"no Vast.ai key found (looked at VAST_API_KEY, {where.key_file} and {vast})",
        hint=f"export VAST_API_KEY=...   or write it to {where.key_file} with mode 600",
    )


def _text(file: Path) -> str:
    """In UTF-8 or, as shells of Windows write it, in UTF-16; what is neither makes no key."""
    raw = file.read_bytes()
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return raw.decode(encoding, "replace").strip()


def _one_word(value: str, source: str) -> ApiKey:
    """Raises CredentialsRefused for what no header can carry."""
    if not value or not (value.isascii() and value.isprintable()) or " " in value:
        raise CredentialsRefused(
            f"{source} holds no key: it is one word of ASCII", hint="copy it again from the market"
        )
    return ApiKey(value, source)
