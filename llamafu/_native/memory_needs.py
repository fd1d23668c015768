"""A lower bound of a context's KV memory: libllama may allocate more than there is, and the system kills the process later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.model import Model

BYTES_PER_VALUE = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""The types that KV memory can have. libllama accepts every other one too, and crashes at the first decode."""

_CELL = 16  # bytes of bookkeeping for each position, in the build that needs least


def least_bytes(model: Model, options: ContextOptions) -> float:
    """Return the bytes that a context of `options` takes at least; next to none for models that do not keep every position."""
    if model.is_recurrent:
        return 0.0
    architecture = model.metadata("general.architecture")

    def number(key: str) -> int:
        text = model.metadata(f"{architecture}.attention.{key}") or ""
        return int(text) if text.isdecimal() else 0

    partial = number("sliding_window") or number("kv_lora_rank")
    heads = number("head_count_kv")
    width = model.n_embd // max(number("head_count"), 1)
    key = (number("key_length") or width) * BYTES_PER_VALUE[options.type_k]
    value = (number("value_length") or width) * BYTES_PER_VALUE[options.type_v]
    return options.n_ctx * (_CELL + (0 if partial else model.n_layer * heads * (key + value)))
