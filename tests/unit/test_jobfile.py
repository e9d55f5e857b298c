"""What a person wrote in the job file reaches the machine."""

from __future__ import annotations

from pathlib import Path

from store import JOB, add_job, add_lease, opened

from daemon.control import jobfile
from daemon.domain.spec import JobSpec, Lora, Preference, Training
from daemon.settings import Settings, paths
from daemon.store import jobs, leases

# None of them is the default.
WRITTEN = {
    "placement": "single",
    "speed": "plain",
    "batch_size": 16,
    "micro_batch_size": 4,
    "max_length": 512,
    "seed": 7,
    "reasoning": "empty",
    "report_to": "tensorboard",
    "sft": Training(data="s.jsonl", epochs=2.0, lr=1e-3, max_steps=9),
    "dpo": Preference(data="d.jsonl", epochs=3.0, lr=1e-4, max_steps=8, beta=0.3),
    "lora": Lora(r=8, alpha=9, dropout=0.1),
}


def test_every_setting_of_the_training_arrives(tmp_path: Path) -> None:
    """What job file and job.json call by the same name has the same value, in the blocks too."""
    spec = JobSpec(version=1, name="n", model="owner/base", **WRITTEN)
    database = opened(tmp_path)
    with database.write() as c:
        add_job(c)
        lease = add_lease(c, price_per_hour=2_000_000)

    with database.read() as c:
        made = jobfile.build(
            jobs.get(c, JOB), spec, leases.get(c, lease), (), Settings(paths({"HOMEPORT_HOME": str(tmp_path)}))
        )

    for name in WRITTEN:
        assert shown(getattr(made, name), getattr(spec, name)), name


def shown(sent: object, written: object) -> bool:
    """Whether `sent` says what `written` says, block by block."""
    fields = getattr(type(sent), "__dataclass_fields__", None)
    if fields is None:
        return sent == written
    return all(getattr(sent, name) == getattr(written, name) for name in fields if hasattr(written, name))
