"""libllama's own samplers, also those that Llamafu declares nothing of: what its own formulas are compared with."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu._native.model import Model

_ENTRY = [("id", "int32"), ("logit", "float32"), ("p", "float32")]


def sampled(model: Model, sampler: int, logits: np.ndarray) -> dict[int, float]:
    """Apply a sampler, by its address, to the logits of all tokens; {token: logit} of those that are left."""
    ffi, lib = model.library.ffi, model.library.lib
    data = np.zeros(len(logits), _ENTRY)
    data["id"], data["logit"] = np.arange(len(logits)), logits
    first = ffi.from_buffer("struct llama_token_data[]", data)
    array = ffi.new("struct llama_token_data_array *", {"data": first, "size": len(data), "selected": -1, "sorted": False})
    pointer = ffi.cast("struct llama_sampler *", sampler)
    lib.llama_sampler_apply(pointer, array)
    left = {int(array.data[i].id): float(array.data[i].logit) for i in range(array.size)}
    lib.llama_sampler_free(pointer)
    return left


def function(model: Model, name: str) -> Any:
    """Return a function of the loaded library; what it returns is an address."""
    found = getattr(ctypes.CDLL(str(model.library.path)), name)
    found.restype = ctypes.c_void_p
    return found


def typical(model: Model, p: float, min_keep: int) -> int:
    """Make a `typical` sampler."""
    return function(model, "llama_sampler_init_typical")(ctypes.c_float(p), ctypes.c_size_t(min_keep))


def mirostat(model: Model, version: int, tau: float, eta: float, seed: int) -> int:
    """Make a `mirostat` sampler."""
    numbers = ctypes.c_uint32(seed), ctypes.c_float(tau), ctypes.c_float(eta)
    if version == 1:
        init = function(model, "llama_sampler_init_mirostat")
        return init(ctypes.c_int32(model.n_vocab), *numbers, ctypes.c_int32(100))
    return function(model, "llama_sampler_init_mirostat_v2")(*numbers)


def knows_dry(model: Model) -> bool:
    """Whether the build's `dry` is made as here: older ones want the context's size, too."""
    return model.library.family in {"layout15", "layout16"}


def dry(model: Model, tokens: Sequence[int], breakers: Sequence[str], **options: Any) -> int:
    """Make a `dry` sampler that has seen `tokens`."""
    texts = (ctypes.c_char_p * len(breakers))(*(text.encode() for text in breakers))
    sampler = function(model, "llama_sampler_init_dry")(
        ctypes.c_void_p(int(model.library.ffi.cast("intptr_t", model.vocab))),
        ctypes.c_float(options["multiplier"]),
        ctypes.c_float(options["base"]),
        ctypes.c_int32(options["allowed"]),
        ctypes.c_int32(len(tokens) if options["last"] < 0 else options["last"]),
        texts,
        ctypes.c_size_t(len(breakers)),
    )
    accept = function(model, "llama_sampler_accept")
    for token in tokens:
        accept(ctypes.c_void_p(sampler), ctypes.c_int32(token))
    return sampler
