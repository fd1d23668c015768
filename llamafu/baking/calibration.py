"""Calibration of `bake`: matrices are quantised for the inputs that they get while the model reads a text."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from llamafu._native.adapter import Adapter
from llamafu._native.context import Context
from llamafu._native.context_options import ContextOptions
from llamafu._native.graph.matmul_hook import MatmulHook
from llamafu._native.model import Model
from llamafu._native.model_check import check_model
from llamafu._util.system.hardware import machine_bytes
from llamafu.adapters.gguf.ggml_type import BLOCKS
from llamafu.adapters.info import is_expert
from llamafu.baking.calibration_data import WINDOW, evenly_spaced, generated_windows, packed, text_windows
from llamafu.baking.fidelity import Fidelity, measure_fidelity
from llamafu.baking.quant_blocks import RANGES
from llamafu.baking.sequential import MatrixLocation, SequentialQuantiser
from llamafu.errors import ErrorCode, LibraryNotFoundError, LoraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from llamafu._native.library import Library
    from llamafu.adapters.gguf.shard import Shard
    from llamafu.baking.writer import BakeRecipe

_HELD_OUT = 20  # windows for measuring the result, which calibration does not read
_MOST_ROWS = 3 << 15  # of one decode; each token of the text takes two
_ROW_VALUES = 24  # float32 values that a row takes in a decode, as a multiple of the model's width
_LOGITS_BYTES = 1 << 29  # at most, for logits that nobody reads: libllama drops rows without logits before the last layer
_MEMORY_SHARE = 1 / 4  # of the machine's memory that a decode may take


def calibrated_matrices(shards: Sequence[Shard], recipe: BakeRecipe) -> dict[str, MatrixLocation]:
    """Return the changed matrices of types that calibration can fit, in the files' order.

    Raises LoraError, once a reason, for changed tensors of coarse types that it cannot fit. F16, BF16 and F32 ones need none.
    """
    found: dict[str, MatrixLocation] = {}
    problems: dict[str, list[str]] = {}
    for shard in shards:
        for entry in shard.container.tensors.values():
            kind = recipe.kinds.get(entry.name)
            if kind is None:
                continue
            if kind in RANGES and not is_expert(entry.name):
                found[entry.name] = MatrixLocation(shard.path, entry)
            elif kind in RANGES:
                problems.setdefault(_NO_INPUTS, []).append(entry.name)
            elif BLOCKS[kind][0] > 1:
                types = ", ".join(known.name for known in RANGES)
                why = f"its type {kind.name} cannot be calibrated, only {types} can; choose the dtype 'f16' instead"
                problems.setdefault(why, []).append(entry.name)
    if problems:
        message = "; ".join(f"{_listed(names)}: {why}" for why, names in problems.items())
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    return found


_NO_INPUTS = (
    "no plain matrix product uses it (as with stacks of experts and token embeddings), so it has no inputs to calibrate with; "
    "bake without calibration"
)


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]


class Calibration:
    """The model at `path` and the adapters of `recipe`, loaded by libllama, and the text that calibration reads.

    `text` is cut into windows of tokens, of which up to twenty are held out for measuring; None is the sample that comes with
    Llamafu and text that the model writes itself. Close it after use. One thread at a time. Raises LibraryNotFoundError where
    `library` is None, ValueError for a text that is too short.
    """

    def __init__(self, library: Library | None, path: Path, recipe: BakeRecipe, *, text: str | None) -> None:
        if library is None:
            message = "calibration runs the model, and no libllama is in use; get one with `llamafu lib install`"
            raise LibraryNotFoundError(message)
        self._recipe = recipe
        self._open = ExitStack()
        with ExitStack() as failed:
            failed.callback(self.close)
            self._model = self._open.enter_context(closing(Model(library, path, checked=check_model(library, path))))
            self._adapters: dict[Adapter, float] = {}
            for file, scale in recipe.uses:
                adapter = Adapter(self._model, file.content, label=file.path.name)
                self._adapters[self._open.enter_context(closing(adapter))] = scale
            if text is None:
                windows = generated_windows(self._model, self._adapters, recipe.n_threads)
            else:
                windows = text_windows(self._model, text)
            failed.pop_all()
        stride = max(2, len(windows) // _HELD_OUT)
        self.held_out = evenly_spaced(windows[1::stride], min(_HELD_OUT, len(windows[1::stride])))
        """The windows that the result is measured on."""
        self.windows = [window for number, window in enumerate(windows) if number % stride != 1]
        """The windows that matrices are fitted to."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and the adapters. Idempotent."""
        self._open.close()

    def fitted(self, matrices: Mapping[str, MatrixLocation], on_progress: Callable[[float], None]) -> dict[str, bytes]:
        """Quantise the matrices during one decode of the whole text, and return their bytes by name.

        Every text is in the batch twice: see `SequentialQuantiser`. Raises LoraError for a matrix that no product uses.
        """
        quantiser = SequentialQuantiser(matrices, self._recipe, on_progress)
        hook = MatmulHook(self._model.library, matrices, quantiser.take)
        most = self._model.library.lib.llama_max_parallel_sequences() // 2
        texts = packed(self.windows, most, self._most_rows() // 2)
        count, length = len(texts), len(texts[0])
        rows = 2 * count * length
        step = max(1, -(-rows * 4 * self._model.n_vocab // _LOGITS_BYTES))
        outputs = [place % step == 0 for place in range(length)] * (2 * count)
        options = ContextOptions(
            n_ctx=rows, n_batch=rows, n_threads=self._recipe.n_threads, n_seq_max=2 * count, n_outputs=sum(outputs)
        )
        with closing(Context(self._model, options, hook=hook)) as context:
            tokens = [token for text in texts for token in text] * 2
            sequences = [number for number in range(2 * count) for _ in range(length)]
            code = context.compute(tokens, [*range(length)] * (2 * count), sequences, outputs)
            hook.check()
            if code:
                raise context.failure(code, "the calibration text could not be read")
        if missing := hook.missing:
            message = f"{_listed(missing)}: {_NO_INPUTS}"
            raise LoraError(message, code=ErrorCode.INVALID_PARAM)
        return quantiser.fitted

    def _most_rows(self) -> int:
        """Return how many rows one decode may have, since the values of all of them are in memory at once.

        Builds without `n_outputs_max` allocate logits for every row, though few are asked for. Where sequences share one KV
        cache, the attention mask has a value for every pair of rows.
        """
        memory, model = _MEMORY_SHARE * machine_bytes(), self._model
        most = min(memory / (4 * _ROW_VALUES * model.n_embd), _MOST_ROWS)
        if "n_outputs_max" not in model.library.context_fields:
            most = min(most, 2 * memory / (4 * model.n_vocab))
        return int(most if model.library.parts_memory else min(most, (memory / 6) ** 0.5))

    def fidelity(self, baked: Path) -> Fidelity:
        """Compare a baked model with this one and its adapters, on the held-out windows."""
        with ExitStack() as opened:
            model = opened.enter_context(
                closing(Model(self._model.library, baked, checked=check_model(self._model.library, baked)))
            )
            contexts = []
            for source, adapters in ((self._model, {}), (self._model, self._adapters), (model, {})):
                options = ContextOptions(n_ctx=WINDOW, n_batch=WINDOW, n_threads=self._recipe.n_threads)
                contexts.append(opened.enter_context(closing(Context(source, options))))
                contexts[-1].set_adapters(adapters)
            return measure_fidelity(contexts[0], contexts[1], contexts[2], self.held_out)
