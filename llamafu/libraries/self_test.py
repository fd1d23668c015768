"""Third step of the verification: use the library, in a child process, on a model of a few kilobytes.

Many defaults are zero, so a fingerprint can fit by accident. Here distinct values are set and read back,
callbacks must fire, tensors must look as the family says, and logits with and without an adapter must equal
those that NumPy computed (`proof/expected.json`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._native.adapter import Adapter
from llamafu._native.checks import not_null
from llamafu._native.context import Context
from llamafu._native.context_options import ContextOptions
from llamafu._native.graph.eval_callback import EvalCallback
from llamafu._native.model import Model
from llamafu._native.sampler import SamplerChain
from llamafu.errors import AbiMismatchError, ModelLoadError

if TYPE_CHECKING:
    from llamafu._native.library import Library

FOLDER = Path(__file__).parent / "proof"
_N_CTX, _N_BATCH, _N_UBATCH, _N_SEQ = 768, 160, 96, 3
_CYCLES = 64


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """What the self-test found out beyond the layout; None where this system cannot tell."""

    frees_adapters: bool | None


def run(library: Library) -> SelfTestResult:
    """Raise `AbiMismatchError` at the first thing that is not as the family says."""
    expected = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    _load_with_progress(library)
    model = Model(library, FOLDER / "model.gguf")
    _values_come_back(model)
    _callbacks_fire(model, expected)
    _logits_agree(model, expected)
    _samplers_work(model)
    result = SelfTestResult(frees_adapters=_frees_adapters(model))
    model.close()
    return result


def _demand(what: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        message = f"{what} is {seen!r} where {wanted!r} was expected"
        raise AbiMismatchError(message)


def _load_with_progress(library: Library) -> None:
    """Load the model with a progress callback, which must fire."""
    ffi, lib = library.ffi, library.lib
    calls: list[float] = []

    def on_progress(fraction: float, _user_data: Any) -> bool:
        calls.append(fraction)
        return True

    callback = ffi.callback("bool(float, void *)", on_progress, error=False)
    params = lib.llama_model_default_params()
    params.progress_callback = callback
    pointer = lib.llama_model_load_from_file(str(FOLDER / "model.gguf").encode(), params)
    not_null(library, pointer, ModelLoadError, "the proof model does not load")
    lib.llama_model_free(pointer)
    _demand("whether the progress callback fired", bool(calls) and 0.0 <= calls[-1] <= 1.0, wanted=True)


def _values_come_back(model: Model) -> None:
    """Set every option that the library can report, each to another value, and compare what it reports."""
    ffi, lib = model.library.ffi, model.library.lib
    fields = {name for name, _ in ffi.typeof("struct llama_context_params").fields}
    for unified in (False, True) if "kv_unified" in fields else (False,):
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = _N_CTX, _N_BATCH, _N_UBATCH, _N_SEQ
        params.n_threads, params.n_threads_batch, params.pooling_type = 3, 5, 3
        if "kv_unified" in fields:
            params.kv_unified = unified
        context = not_null(
            model.library, lib.llama_init_from_model(model.pointer, params), AbiMismatchError, "no context for the proof model"
        )
        seen = {
            "n_ctx": lib.llama_n_ctx(context),
            "n_batch": lib.llama_n_batch(context),
            "n_ubatch": lib.llama_n_ubatch(context),
            "n_seq_max": lib.llama_n_seq_max(context),
            "n_threads": lib.llama_n_threads(context),
            "n_threads_batch": lib.llama_n_threads_batch(context),
            "pooling_type": int(lib.llama_pooling_type(context)),
        }
        wanted = {
            "n_ctx": _N_CTX,
            "n_batch": _N_BATCH,
            "n_ubatch": _N_UBATCH,
            "n_seq_max": _N_SEQ,
            "n_threads": 3,
            "n_threads_batch": 5,
            "pooling_type": 3,
        }
        if "kv_unified" in fields and model.library.has("llama_n_ctx_seq"):
            seen["n_ctx_seq"] = lib.llama_n_ctx_seq(context)
            wanted["n_ctx_seq"] = _N_CTX if unified else _N_CTX // _N_SEQ
        lib.llama_free(context)
        _demand("what was set on a context and read back", seen, wanted)


def _callbacks_fire(model: Model, expected: dict[str, Any]) -> None:
    """Check that `cb_eval` sees the expected weights, and that `abort_callback` stops a decode."""
    library = model.library
    ffi, lib = library.ffi, library.lib
    multiply = library.operations["MUL_MAT"]
    weights: set[str] = set()

    def on_node(tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        if ask and tensor.op == multiply:
            weights.add(ffi.string(tensor.src[0].name).decode())
        return False

    context = Context(model, ContextOptions(n_ctx=256, n_batch=64), hook=EvalCallback(model.library, on_node))
    context.decode(expected["tokens"], 0)
    context.close()
    _demand("the weights that cb_eval saw", {"blk.0.attn_q.weight", "blk.0.ffn_down.weight"} <= weights, wanted=True)

    aborts: list[int] = []

    def on_abort(_user_data: Any) -> bool:
        aborts.append(1)
        return True

    callback = ffi.callback("bool(void *)", on_abort, error=False)
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    params.abort_callback = callback
    pointer = not_null(library, lib.llama_init_from_model(model.pointer, params), AbiMismatchError, "no context")
    batch = lib.llama_batch_init(1, 0, 1)
    batch.n_tokens, batch.token[0], batch.pos[0], batch.n_seq_id[0], batch.seq_id[0][0] = 1, 0, 0, 1, 0
    code = lib.llama_decode(pointer, batch)
    lib.llama_batch_free(batch)
    lib.llama_free(pointer)
    _demand("the result of an aborted decode", (code != 0, bool(aborts)), (True, True))


def _logits_agree(model: Model, expected: dict[str, Any]) -> None:
    """Compare base and adapted logits with NumPy's, with F32 and with F16 KV; embeddings must come out when asked for."""
    adapter = Adapter(model, (FOLDER / "adapter.gguf").read_bytes(), label="the proof adapter")
    tokens = expected["tokens"]
    for kind, tolerance in expected["tolerance"].items():
        options = ContextOptions(n_ctx=256, n_batch=64, flash_attn="off", type_k=kind, type_v=kind, embeddings=kind == "f32")
        context = Context(model, options)
        for case, wanted in expected["logits"].items():
            context.clear()
            context.set_adapters({} if case == "base" else {adapter: float(case)})
            context.decode(tokens, 0, all_logits=options.embeddings)
            worst = max(abs(float(a) - b) for a, b in zip(context.logits(), wanted, strict=True))
            if not worst <= tolerance:
                message = f"logits ({case}, {kind} KV) are off by {worst:.3g}; at most {tolerance} was expected"
                raise AbiMismatchError(message)
        if options.embeddings:
            context.take_embeddings(len(tokens))
        context.close()
    adapter.close()


def _samplers_work(model: Model) -> None:
    sampler = SamplerChain(model)
    sampler.add_temperature(0.5)
    tokens, logits = sampler.filter([0, 1, 2], [1.0, 2.0, 3.0])
    seen = sorted(zip(tokens.tolist(), logits.tolist(), strict=True))
    sampler.close()
    _demand("logits 1, 2, 3 at temperature 0.5", seen, [(0, 2.0), (1, 4.0), (2, 6.0)])


def _frees_adapters(model: Model) -> bool | None:
    """Load and free an adapter many times: in some releases freeing does nothing (upstream #18490, undone by #19983)."""
    before = _heap_bytes()
    if before is None:
        return None
    content = (FOLDER / "adapter.gguf").read_bytes()
    for _ in range(_CYCLES):
        Adapter(model, content, label="the proof adapter").close()
    after = _heap_bytes()
    return after is not None and after - before < _CYCLES * len(content) // 4


def _heap_bytes() -> int | None:
    """Return the bytes in use on glibc's heap; None on another C library."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(
        "struct heap { size_t arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost; };"
        "struct heap mallinfo2(void);"
    )
    try:
        info = ffi.dlopen(None).mallinfo2()
    except (AttributeError, OSError):
        return None
    return int(info.uordblks) + int(info.hblkhd)
