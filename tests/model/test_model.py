"""`Llamafu` as a whole: its state, its end, its constructor and the mirrored functions, on the tiny model."""

import math

import numpy as np
import pytest

from llamafu import Llamafu
from llamafu.errors import (
    ClosedError,
    ErrorCode,
    LlamafuError,
    ModelLoadError,
    StateFileError,
)

GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llm(tiny_model):
    with Llamafu(tiny_model, n_ctx=256) as llm:
        yield llm


def test_state_survives_a_restart(tiny_model, tiny_adapter_a, tmp_path):
    """The saved prompt is taken up again, under the same adapter only."""
    prompt = "Once upon a time " * 6
    with Llamafu(tiny_model, n_ctx=256) as llm:
        adapter = llm.load_lora_adapter(tiny_adapter_a)
        wanted = llm.complete(prompt, lora={adapter: 0.5}, **GREEDY)
        llm.complete(prompt, lora={adapter: 0.5}, temperature=0, max_tokens=1)
        llm.save_state(tmp_path / "state")
    with Llamafu(tiny_model, n_ctx=256) as llm:
        adapter = llm.load_lora_adapter(tiny_adapter_a)
        assert llm.load_state(tmp_path / "state") == wanted.usage.prompt_tokens
        assert llm.complete(prompt, lora={adapter: 1.0}, **GREEDY).usage.cached_tokens == 0
        llm.load_state(tmp_path / "state")
        again = llm.complete(prompt, lora={adapter: 0.5}, **GREEDY)
        assert again.tokens == wanted.tokens
        assert again.usage.cached_tokens == wanted.usage.prompt_tokens - 1


def test_states_of_others_are_refused(tiny_model, tiny_dir, tmp_path):
    with Llamafu(tiny_model, n_ctx=64) as llm:
        llm.complete("hello", max_tokens=1)
        llm.save_state(tmp_path / "state")
        raw = (tmp_path / "state").read_bytes()
        for damaged in (raw[:-1], raw[:20], b"", b"x" * 100, raw[:-5] + b"12345"):
            (tmp_path / "damaged").write_bytes(damaged)
            with pytest.raises(StateFileError, match="damaged"):
                llm.load_state(tmp_path / "damaged")
    with Llamafu(tiny_dir / "tiny-tied.gguf", n_ctx=64) as other, pytest.raises(StateFileError, match="another model"):
        other.load_state(tmp_path / "state")


def test_bad_constructor_arguments(tiny_model, tmp_path):
    for arguments, text in (
        ({"n_ctx": 0}, "n_ctx=0"), ({"n_batch": 0}, "n_batch=0"), ({"n_threads": 0}, "n_threads=0"),
        ({"flash_attn": "yes"}, "'auto', 'off', 'on'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            Llamafu(tiny_model, **arguments)
    with pytest.raises(LlamafuError, match="type_k='f33'"):
        Llamafu(tiny_model, type_k="f33")
    with pytest.raises(FileNotFoundError, match="nothing.gguf"):
        Llamafu(tmp_path / "nothing.gguf")
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 100)
    with pytest.raises(ModelLoadError, match="junk.gguf"):
        Llamafu(tmp_path / "junk.gguf")


def test_whole_numbers_of_numpy(tiny_model):
    with Llamafu(tiny_model, n_ctx=np.int64(256), n_batch=np.int8(64), n_threads=np.uint8(1)) as llm:
        found = llm.complete("Once", top_k=np.int32(40), seed=np.uint64(2**63 + 5), max_tokens=np.int8(3), ignore_eos=True)
        assert (found.seed, len(found.tokens)) == (2**63 + 5, 3)


def test_closed(tiny_model, tiny_adapter_a):
    llm = Llamafu(tiny_model, n_ctx=64)
    adapter = llm.load_lora_adapter(tiny_adapter_a)
    llm.close()
    llm.close()
    for use in (
        lambda: llm.complete("x"), lambda: llm.load_lora_adapter(tiny_adapter_a), lambda: llm.apply_lora_adapter(adapter),
        lambda: llm.tokenize("x"), lambda: llm.set_lora_adapters({}), lambda: adapter.unload(), lambda: llm.embed("x"),
    ):  # fmt: skip
        with pytest.raises((ClosedError, ValueError)):
            use()


def test_mirrored_functions(tiny_model, tiny_adapter_a, tiny_dir, tmp_path):
    """Codes in, codes out, with the C header's numbers."""
    from llamafu import _native
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.library import open_library
    from llamafu.adapters.file import read_adapter
    from llamafu.libraries.discovery import find

    proven = find()
    library = open_library(proven.path, proven.family)
    make = lambda: _native.Instance(library, tiny_model, ContextOptions(n_ctx=64), reader=lambda p: read_adapter(p).content)  # noqa: E731
    instance, other = make(), make()
    out = []
    assert _native.llamafu_lora_adapter_init(instance, str(tiny_adapter_a), out) == ErrorCode.SUCCESS == 0
    (adapter,) = out
    assert _native.llamafu_lora_adapter_init(instance, "", out) == ErrorCode.INVALID_PARAM == -2
    (tmp_path / "bad").write_bytes(b"BAD!")
    assert _native.llamafu_lora_adapter_init(instance, str(tmp_path / "bad"), out) == ErrorCode.LORA_LOAD_FAILED == -6
    assert _native.llamafu_lora_adapter_apply(instance, adapter, 0.5) == 0
    assert instance.context.adapters == {adapter: 0.5}
    assert _native.llamafu_lora_adapter_apply(instance, adapter, math.nan) == -2
    assert _native.llamafu_lora_adapter_apply(other, adapter, 0.5) == ErrorCode.LORA_NOT_FOUND == -7
    assert _native.llamafu_lora_adapter_remove(instance, adapter) == 0
    assert instance.context.adapters == {}
    assert _native.llamafu_lora_adapter_apply(instance, adapter, 1.0) == 0
    assert _native.llamafu_lora_adapter_clear_all(instance) == 0
    assert instance.context.adapters == {}
    assert _native.llamafu_lora_adapter_free(instance, adapter) == 0
    assert _native.llamafu_lora_adapter_free(instance, adapter) == -7
    other.close()
    instance.close()
    assert _native.llamafu_lora_adapter_clear_all(instance) == ErrorCode.CLOSED


def test_builds_that_never_free_reuse_by_content(tiny_model, tiny_adapter_a, monkeypatch):
    """Where the library's free does nothing, a freed adapter is taken up again; its old handle is dead all the same."""
    from dataclasses import replace

    import llamafu.model.session

    find = llamafu.model.session.find
    monkeypatch.setattr(llamafu.model.session, "find", lambda library: replace(find(library), frees_adapters=False))
    with Llamafu(tiny_model, n_ctx=64) as llm:
        first = llm.load_lora_adapter(tiny_adapter_a)
        wanted = llm.complete("Once", lora={first: 1.0}, **GREEDY).tokens
        native = llm._adapters.native(first)
        pointer = native.pointer
        stream = llm.stream("Once", lora={first: 1.0}, max_tokens=20, ignore_eos=True)
        next(stream)
        first.unload()
        with pytest.raises(ClosedError, match="unloaded"):
            list(stream)
        assert native.closed
        again = llm.load_lora_adapter(tiny_adapter_a)
        assert llm._adapters.native(again).pointer == pointer
        assert llm.complete("Once", lora={again: 1.0}, **GREEDY).tokens == wanted
