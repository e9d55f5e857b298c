"""An earlier adapter on this computer: whether a job could go on from it, as far as its settings tell.

The box asks the same again before it trains, and there also whether the weights fit those of the base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from daemon.artifacts.hashing import sha256
from daemon.domain.spec import Lora
from remote_payload import adapters, contract
from remote_payload.adapters import CONFIG, FILES

WEIGHTS = adapters.WEIGHTS


def hashes(folder: Path) -> dict[str, str]:
    """File name -> sha256. Raises OSError."""
    return {name: sha256(folder / name) for name in FILES}


def objections(folder: Path, model: str, lora: Lora | None) -> Iterator[str]:
    """Against using the adapter in `folder` on `model`, the base model's name; `lora` is given where it is to go on."""
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        yield f"{' and '.join(missing)} missing in {folder}"
        return
    if (folder / CONFIG).stat().st_size > contract.MAX_JSON_BYTES:
        yield f"{CONFIG} is absurdly large"
        return
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"{CONFIG} is not JSON: {error}"
        return
    if not isinstance(config, dict):
        yield f"{CONFIG} is not a JSON object"
        return
    yield from adapters.strangeness(config)
    yield from adapters.base_problems(config, model)
    if lora is not None:
        yield from adapters.lora_problems(config, contract.Lora(r=lora.r, alpha=lora.alpha, dropout=lora.dropout))
