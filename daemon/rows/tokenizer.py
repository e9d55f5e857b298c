"""A model's tokenizer.json and chat template, without transformers: enough to count and to show rows.

Needs the packages of `homeport[data]`. The template runs in a sandbox without access to anything but the row.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from daemon.errors import SpecError
from daemon.rows.readers import INSTALL
from daemon.rows.shapes import Row

# What the code of a template may run into; the rest is jinja2's own.
OWN_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class Tokenizer:
    """What `folder` says about text. Raises SpecError when packages or files are missing or cannot be read.

    `chat_template`, `eos_token` and `apply_chat_template` are those of a tokenizer of transformers, as far as the
    payload asks for them to choose a template for training and to render a row.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import jinja2.ext
            import jinja2.sandbox
            from tokenizers import Tokenizer as Raw
        except ImportError as error:
            raise SpecError(
                [f"{folder}: counting tokens needs {error.name}, which is not installed"], hint=INSTALL
            ) from error
        try:
            self._raw = Raw.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library knows no narrower one for a file it cannot read
            raise SpecError([f"{folder / 'tokenizer.json'}:1: is no tokenizer ({error})"]) from error
        self._raw.no_truncation()
        self._raw.no_padding()
        settings = settings_of(folder / "tokenizer_config.json")
        self._special = {name: _content(settings[name]) for name in ("bos_token", "eos_token") if settings.get(name)}
        self.eos_token = self._special.get("eos_token")
        self.chat_template = _template(folder, settings)
        self._jinja = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation()]
        )
        self._jinja.filters["tojson"] = _to_json
        self._compiled: dict[str, jinja2.Template] = {}
        self._jinja.globals |= {"raise_exception": _refuse, "strftime_now": _today}

    def count(self, text: str, *, special: bool) -> int:
        """Tokens of `text`; `special` adds those the tokenizer puts around a text that no template rendered."""
        return len(self._raw.encode(text, add_special_tokens=special).ids)

    def apply_chat_template(
        self,
        messages: Iterable[Row],
        *,
        tools: list[Row] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
    ) -> str:
        """The text, never its tokens. Raises jinja2.TemplateError when the template refuses these messages."""
        import jinja2

        template = chat_template or self.chat_template
        if template is None:
            raise jinja2.TemplateError("the model has no chat template, which conversations need")
        if template not in self._compiled:
            self._compiled[template] = self._jinja.from_string(template)
        try:
            return self._compiled[template].render(
                messages=list(messages), tools=tools, add_generation_prompt=add_generation_prompt, **self._special
            )
        except OWN_FAULTS as error:
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error


def folder_of(model: str, base: Path, fetched: Path) -> Path | None:
    """Where the tokenizer of a spec's `model` lies: its own folder relative to `base`, what an earlier submit
    `fetched`, or the hub's cache; None when it is nowhere here."""
    name = model.partition("@")[0]
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    places = [
        base / Path(model).expanduser(),
        *sorted(fetched.glob(f"{name.replace('/', '--')}@*")),
        *sorted(cache.glob(f"models--{name.replace('/', '--')}/snapshots/*")),
    ]
    return next((place for place in places if (place / "tokenizer.json").is_file()), None)


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SpecError([f"{file}:1: cannot be read ({error})"]) from error
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = [each for each in found if isinstance(each, dict) and each.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def settings_of(path: Path) -> dict[str, Any]:
    """One JSON object; of a file that is not there or holds something else, an empty one. Raises SpecError."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError([f"{path}:1: cannot be read ({error})"]) from error
    return found if isinstance(found, dict) else {}


def _content(token: Any) -> str:
    return str(token.get("content", "") if isinstance(token, dict) else token)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _today(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)


def _generation() -> Any:
    """The tag that training templates mark answers with; it changes nothing of the text."""
    import jinja2.ext

    class Generation(jinja2.ext.Extension):
        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation
