"""llama.cpp's converter over one model folder, with the adapter merged into each tensor as it passes.

The converter holds its tensors as promises to read them. Each promise is wrapped here, so that reading a weight gives
the merged one, checked to be numbers; everything after that, from names to quantisation, is the converter's own work.
The converter would run code that lies in the model folder, so it is only ever shown a clean copy.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch

from remote_payload import converter, eight_bit
from remote_payload.ahead import computed_ahead
from remote_payload.contract import Exit
from remote_payload.merge import Delta, MergeFailed, check_targets
from remote_payload.quants import PREDICTED_ARCHITECTURES, QUANTS, Quant, aligned, data_bytes
from remote_payload.script import ScriptFailed

# All that the converter may see of a model folder. Python files, pickles and `auto_map` could run code in it.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
WITH_CODE = frozenset({"config.json", "tokenizer_config.json"})
F16_LIMIT = 65504.0

# A tokenizer that llama.cpp does not recognise may name its own pre-tokenizer in tokenizer_config.json under this key.
# Only these names are taken, and `evaluate` then proves on sample texts that llama.cpp splits them into the same ids.
PRE_TOKENIZER_KEY = "homeport_pre_tokenizer"
PRE_TOKENIZERS = frozenset({"gpt-2", "llama-bpe", "qwen2", "smollm"})


class TooLargeForF16(Exception):
    """A merged weight does not fit float16; bfloat16 holds it."""


def clean_copy(model: Path, into: Path) -> Path:
    """`into` with links to the files of `model` that the converter may see, references to model code taken out.

    Of two chat templates it has the one that was trained with.

    Raises ScriptFailed when there are no safetensors, or quantised ones, into which no adapter can be merged.
    """
    into.mkdir(parents=True)
    for pattern in MODEL_FILES:
        for file in model.glob(pattern):
            if file.name in WITH_CODE:
                settings = json.loads(file.read_text())
                settings.pop("auto_map", None)
                if (model / "chat_template.jinja").exists():  # what the tokenizer takes, and the converter not
                    settings.pop("chat_template", None)
                (into / file.name).write_text(json.dumps(settings))
            else:
                (into / file.name).symlink_to(file.resolve())
    if not any(into.glob("model*.safetensors")):
        raise ScriptFailed(Exit.BAD_CONFIG, f"{model} holds no model*.safetensors")
    if "quantization_config" in json.loads((into / "config.json").read_text()):
        raise MergeFailed("the base model is stored quantised; an adapter can only be merged into 16-bit weights")
    return into


class Conversion:
    """llama.cpp's converter, imported from its pinned folder, over one model folder. `llama`: its compiled half."""

    def __init__(
        self, folder: Path, source: Path, deltas: dict[str, Delta], model_name: str, llama: ModuleType | None = None
    ) -> None:
        sys.path[:0] = [str(folder), str(folder / "gguf-py")]
        import conversion
        import gguf

        if not Path(gguf.__file__).is_relative_to(folder):
            raise ScriptFailed(Exit.INTERNAL, f"another gguf package was imported first: {gguf.__file__}")
        if llama:
            eight_bit.take_over(gguf, llama)
        # What it warns of is checked here: sizes, places of all weights, the tokenizer.
        logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
        self.source, self.deltas, self.model_name = source, deltas, model_name
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the GGUF's tensors, known after the first `write`
        self.header_bytes = 0
        self.architecture = ""
        self._conversion, self._gguf = conversion, gguf

    def write(self, quant: Quant, path: Path) -> int:
        """Write `path`, whole or not at all, and return its size, which is exactly the predicted one.

        Raises ScriptFailed for weights without a place, non-numbers and wrong sizes, TooLargeForF16 for an F16 file.
        """
        part = path.with_name(f".{path.name}.part")
        with torch.inference_mode():
            model = self._model(quant, part)
            model.prepare_tensors()
            model.prepare_metadata(vocab_only=False)
            writer = model.gguf_writer
            writer.write_header_to_file(path=part)
            writer.write_kv_data_to_file()
            (tensors,) = writer.tensors
            self._look_at(writer.arch, tensors)
            self.header_bytes = aligned(writer.fout[0].tell() + sum(map(_entry_bytes, self.shapes.items())))
            promised = self.header_bytes + sum(aligned(tensor.nbytes) for tensor in tensors.values())
            need_space(path.parent, promised)
            promises = [entry for entry in tensors.values() if isinstance(entry.tensor, self._gguf.LazyNumpyTensor)]
            with computed_ahead(promises, self._gguf.LazyNumpyTensor.to_eager):
                writer.write_tensors_to_file()
            writer.close()
        return finish(part, path, promised, self.predicted(quant))

    def check(self, wanted: Iterable[Quant]) -> int:
        """Go through vocabulary and tensors without reading a weight; the bytes that the `wanted` files will take.

        Raises ScriptFailed for an architecture or tokenizer that is not known, and where our prediction of the 8-bit
        file's size, which the converter makes of its own, is another than the converter's.
        """
        with torch.inference_mode():
            model = self._model(QUANTS["Q8_0"], self.source / "never-written.gguf")
            model.set_vocab()
            model.prepare_tensors()
        (tensors,) = model.gguf_writer.tensors
        self._look_at(model.gguf_writer.arch, tensors)
        promised = sum(aligned(tensor.nbytes) for tensor in tensors.values())
        if self.architecture in PREDICTED_ARCHITECTURES and promised != data_bytes(QUANTS["Q8_0"], self.shapes):
            raise ScriptFailed(Exit.GGUF_GATE, f"a Q8_0 would have {promised} bytes of tensors, not the predicted ones")
        return sum(data_bytes(quant, self.shapes) for quant in wanted)

    def predicted(self, quant: Quant) -> int | None:
        """The file's size by our own rules, None for architectures whose rules we do not know."""
        if self.architecture not in PREDICTED_ARCHITECTURES:
            return None
        return self.header_bytes + data_bytes(quant, self.shapes)

    def tools(self) -> dict[str, str]:
        """What made the files, for the manifest."""
        import transformers

        return {
            "converter": f"{converter.PROJECT} {converter.VERSION} {converter.TREE_SHA256[:16]}",
            "merge": "stream-fp64" if self.deltas else "peft-fp32",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def _look_at(self, architecture: str, tensors: Mapping[str, Any]) -> None:
        self.architecture = architecture
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def _model(self, quant: Quant, path: Path) -> Any:
        base = self._conversion.ModelBase
        hparams = base.load_hparams(self.source, False)
        architecture = self._conversion.get_model_architecture(hparams, self._conversion.ModelType.TEXT)
        try:
            kind = self._conversion.get_model_class(architecture)
        except NotImplementedError as error:
            raise ScriptFailed(Exit.GGUF_GATE, f"llama.cpp's converter does not know {architecture}") from error
        limit = F16_LIMIT if quant.name == "F16" else None
        merging = _merging(kind, self.deltas, _declared_pre_tokenizer(self.source), limit)
        ftype = self._gguf.LlamaFileType(quant.ftype)
        model = merging(self.source, ftype, path, model_name=self.model_name)
        check_targets(self.deltas, merging.seen)
        return model


def need_space(folder: Path, size: int) -> None:
    """Raise ScriptFailed when `size` bytes more do not fit."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ScriptFailed(Exit.OUT_OF_DISK, f"{folder.name}: {size} bytes are needed and {free} are free")


def finish(part: Path, path: Path, *promised: int | None) -> int:
    """Give a written file its name if its size is what was promised; raises ScriptFailed otherwise."""
    with open(part, "rb") as f:
        os.fsync(f.fileno())
        size = os.fstat(f.fileno()).st_size
    wrong = [promise for promise in promised if promise not in (size, None)]
    if wrong:
        raise ScriptFailed(Exit.GGUF_GATE, f"{path.name} has {size} bytes, {wrong[0]} were predicted")
    part.replace(path)
    return size


def _merging(kind: Any, deltas: dict[str, Delta], pre_tokenizer: str | None, limit: float | None) -> Any:
    """The converter's class for this architecture, with the merge and the number check before all that it does."""
    from conversion.base import LazyTorchTensor

    def loaded(name: str, load: Callable[[], Any]) -> Any:
        tensor = load()
        if not tensor.dtype.is_floating_point:
            return tensor
        delta = deltas.get(name)
        change = partial(_checked, name=name, delta=delta, limit=limit)
        return LazyTorchTensor._wrap_fn(change, meta_noop=torch.float32 if delta else True)(tensor)

    class Merging(kind):
        model_arch = kind.model_arch  # the converter asks for it on every class
        seen: ClassVar[set[str]] = set()

        @classmethod
        def filter_tensors(cls, item: tuple[str, Callable[[], Any]]) -> Any:
            name, load = item
            cls.seen.add(name)
            return super().filter_tensors((name, partial(loaded, name, load)))

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            try:
                known: str = super().get_vocab_base_pre(tokenizer)
            except NotImplementedError as error:
                if pre_tokenizer is None:
                    raise ScriptFailed(Exit.GGUF_GATE, f"llama.cpp does not know this tokenizer: {error}") from error
                return pre_tokenizer
            return known

    return Merging


def _checked(tensor: torch.Tensor, *, name: str, delta: Delta | None, limit: float | None) -> torch.Tensor:
    merged = tensor if delta is None else delta.added_to(tensor)
    least, most = torch.aminmax(merged)  # what is no number makes both of them none, in one reading
    if not (torch.isfinite(least) and torch.isfinite(most)):
        raise MergeFailed(f"{name} holds values that are not numbers after the merge")
    if limit is not None and max(-least, most) > limit:
        raise TooLargeForF16(name)
    return merged


def _declared_pre_tokenizer(source: Path) -> str | None:
    settings = source / "tokenizer_config.json"
    declared = json.loads(settings.read_text()).get(PRE_TOKENIZER_KEY) if settings.exists() else None
    return declared if declared in PRE_TOKENIZERS else None


def _entry_bytes(entry: tuple[str, tuple[int, ...]]) -> int:
    """A tensor's line in the header: name with its length, number of dimensions, dimensions, type, offset."""
    name, shape = entry
    return 8 + len(name.encode()) + 4 + 8 * len(shape) + 4 + 8
