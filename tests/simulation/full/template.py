"""What every simulation begins with: a migrated database, our key, a base model and data; made once a process."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

from daemon.box.keys import own_key
from daemon.settings import Paths
from daemon.store import migrate
from daemon.store.database import Database

SPEC = """\
version: 1
name: {name}
model: model
sft: {{data: sft.jsonl}}
{dpo}verify: {{level: hash}}
limits: {{cost: ${cost:.2f}, hold: ${hold:.2f}}}
destroy: {destroy}
"""


NAMES = ("tiny", "other")  # of the jobs, in the order in which they are submitted


@dataclass(frozen=True)
class Twin:
    """A second job beside the first: how many seconds later it is submitted, and whether it has DPO."""

    after_s: float
    dpo: bool


@dataclass(frozen=True)
class Terms:
    """What differs beside the faults: the job file's money and end, how many seconds its person lets a hold wait, what
    the market's charges tell, and whether there is a second job.
    """

    cost: float = 12.0
    hold: float = 2.0
    ask: bool = False
    answers_after: float = 90.0
    timed: bool = True  # the market's charges say from when to when
    twin: Twin | None = None

    def spec(self, name: str, *, dpo: bool) -> str:
        return SPEC.format(
            name=name, dpo="dpo: {data: dpo.jsonl}\n" if dpo else "", cost=self.cost, hold=self.hold,
            destroy="ask" if self.ask else "auto",
        )  # fmt: skip


USUAL = Terms()
AWAY = Terms(hold=0.2, answers_after=900.0)  # nobody answers until a hold has cost its limit
SCARCE = Terms(cost=1.5)  # an undisturbed job comes near what it may train for
ROW = '{"messages": [{"role": "user", "content": "a%d"}, {"role": "assistant", "content": "b"}]}\n'
PAIR = '{"prompt": "a%d", "chosen": "b", "rejected": "c"}\n'


def paths_below(root: Path) -> Paths:
    return Paths(config=root / "config", state=root / "state", models=root / "models")


_template: Path | None = None


def template() -> Path:
    """The folder to copy."""
    global _template
    if _template is None:
        root = on_memory("hp-template-")
        paths = paths_below(root)
        database = Database(paths.database)
        migrate.migrate(database, paths.backups, 0)
        database.close()
        own_key(paths.ssh_key)
        paths.models.mkdir()
        (root / "work" / "model").mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            (root / "work" / "model" / name).write_text("{}")
        (root / "work" / "sft.jsonl").write_text("".join(ROW % n for n in range(6)))
        (root / "work" / "dpo.jsonl").write_text("".join(PAIR % n for n in range(4)))
        _template = root
        Finalize(None, shutil.rmtree, (root, True), exitpriority=0)  # atexit is not run where a pool's process ends
    return _template


def on_memory(prefix: str) -> Path:
    """A new folder, in memory where there is such a file system."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
