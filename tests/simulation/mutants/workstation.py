"""Mistakes about this workstation: two daemons, a power cut, a full disk, an older database."""

from __future__ import annotations

from tests.simulation.mutants.mutant import DATABASE, FOLDER, OPERATE, TAKEN, Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "two leaders",
        "F7",
        "full",
        "a daemon that was overtaken goes on writing",
        (DATABASE, "        if self.epoch is None or current != self.epoch:", "        if False:"),
    ),
    mutant(
        "commits are not synced",
        "F6",
        "full",
        "a power cut takes what was committed, and with it the intent of a rented machine",
        (DATABASE, '"synchronous=FULL"', '"synchronous=NORMAL"'),
    ),
    mutant(
        "receipt before the disk",
        "F6 F3",
        "full",
        "the receipt is stored before the folder is durable",
        (
            FOLDER,
            "        incoming.rename(final)\n        platform.sync_folder(final.parent)\n"
            "        platform.sync_folder(models)\n",
            "        incoming.rename(final)\n",
        ),
    ),
    mutant(
        "full disk is done",
        "F10",
        "full",
        "files that are not whole count as downloaded",
        (
            TAKEN,
            "    return {file.path for file in load(Manifest, job.manifest_json).files} <= complete",
            "    return bool(complete) or bool(load(Manifest, job.manifest_json).files)",
        ),
    ),
    mutant(
        "restored is as before",
        "F13",
        "full",
        "a database from yesterday goes on as if nothing had happened since",
        (
            "daemon/store/leader.py",
            "        elif known and (known.epoch, known.event) > (stored, _last_event(c)):",
            "        elif False:",
        ),
    ),
    mutant(
        "store fault ends the driver",
        "F14",
        "full",
        "a database that cannot be written for a moment ends the job's actor",
        (
            "daemon/control/supervisor.py",
            '                log.error("store.unusable", job=job.id, error=str(error))\n'
            "                await asyncio.sleep(CRASH_PAUSE_S)\n            except Exception as error:",
            "                break\n            except Exception as error:",
        ),
    ),
    mutant(
        "answer with an error is no machine",
        "F2",
        "full",
        "a create whose reply names no instance is refused, not unknown",
        (
            OPERATE,
            'self._resolve(operation, OpState.UNKNOWN, "the reply names no instance")',
            'self._resolve(operation, OpState.REFUSED, "the reply names no instance")',
        ),
    ),
)
