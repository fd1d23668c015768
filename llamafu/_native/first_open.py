"""The child process in which libllama meets a model file first, and long texts: a death here costs the user nothing.

    python -I -S first_open.py SITE FOLDER FAMILY LIBRARY PLUGIN MODEL try|serve

It imports what it cannot do without and starts in some 20 ms: SITE holds cffi's extension module, FOLDER the compiled
families (or, for a family read from a header, the package). "try" prints one word a stage that was survived; "serve" answers
texts on stdin with tokens on stdout. What libllama has to say of errors goes to stderr.
"""

from __future__ import annotations

import _thread
import importlib
import os
import sys
from typing import Any

SMALL_STACK, SHORT = 128 * 1024, 2000
"""Bytes of stack, and a run of characters: a pre-tokenizer that recurses for every character does not live through it."""
_PER_BYTE, _LEAST_STACK, _LARGEST_STACK = 1024, 1 << 20, 1 << 28
"""Stack for a text: twice what was measured at the worst; it is memory only where it is used."""
_MEMORY = 8 << 30
_SMALL_MODEL = 32 << 20
"""Bytes of a model that is read and computed with whole: some milliseconds."""
_FEW = 5  # tokens
_SECONDS = 3
"""For all the texts that are tried, which take some 20 ms."""
_ERROR, _CONTINUED = 4, 5


def main(arguments: list[str]) -> int:
    """Do what the command line asks for; the exit status is 0 where nothing died."""
    site, folder, family, path, plugin, model, task = arguments
    bound_memory(model)
    sys.path += [folder, site]
    if family.startswith("header:"):
        ffi: Any = importlib.import_module("llamafu._native.abi.families").load(family).ffi
    else:
        ffi = importlib.import_module(family).ffi
    lib = ffi.dlopen(path, ffi.RTLD_NOW | ffi.RTLD_LOCAL)
    errors = _Errors(ffi)
    callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", errors.receive)
    lib.llama_log_set(callback, ffi.NULL)
    lib.llama_backend_init()
    if plugin:
        lib.ggml_backend_load(plugin.encode("utf-8", "surrogateescape"))
    if task == "serve":
        return _serve(ffi, lib, model)
    try_model(ffi, lib, model)
    return 0


class _Errors:
    """Passes error lines on to stderr, whole."""

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        self._level = 0

    def receive(self, level: int, text: Any, _user_data: Any) -> None:
        """Take a part of a line."""
        self._level = self._level if level == _CONTINUED else level
        if self._level == _ERROR:
            os.write(2, self._ffi.string(text))


def bound_memory(model: str) -> None:
    """A damaged number may ask for all the memory there is; and no core file shall be left behind."""
    try:
        import resource
    except ImportError:
        return
    size = os.stat(model).st_size if os.path.exists(model) else 0  # noqa: PTH110, PTH116 - pathlib takes 10 ms to import
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY + 2 * size, resource.RLIM_INFINITY))


def _load(lib: Any, model: str, *, weights: str) -> Any:
    """Load a model whose `weights` are all there, are "claimed" (every shape is checked, none read), or left out."""
    params = lib.llama_model_default_params()
    if weights == "claimed":
        params.no_alloc, params.load_mode = True, 0
    elif weights == "left out":
        params.vocab_only = True
    return lib.llama_model_load_from_file(os.fsencode(model), params)


def try_model(ffi: Any, lib: Any, model: str) -> None:
    """Print "opened", "computes", "tokenizes", "spells", "words" and "flat", each once it is certain."""
    fields = {name for name, _ in ffi.typeof("struct llama_model_params").fields}
    # A small model is computed with too. Older builds cannot do without the weights, but for the vocabulary.
    whole = os.stat(model).st_size <= _SMALL_MODEL  # noqa: PTH116 - as below
    weights = "all" if whole else "claimed" if "load_mode" in fields else "left out"
    loaded = _load(lib, model, weights=weights)
    if loaded == ffi.NULL:
        _say("refused")  # without dying: the parent will hear the same, and says so
        return
    _say("opened")
    vocab = lib.llama_model_get_vocab(loaded)
    if weights != "left out":
        _compute(ffi, lib, loaded, decode=whole and lib.llama_vocab_n_tokens(vocab) > 0)
    _say("computes")
    _tokenize(ffi, lib, vocab, b"", flags=3)
    _say("tokenizes")
    _end_after(_SECONDS)  # some damaged vocabularies let a text take for ever
    _tokenize(ffi, lib, vocab, _every_byte(), flags=0)
    _say("spells")
    for stage, texts in (("words", _words(SHORT)), ("flat", _runs(SHORT))):
        for text in texts:
            _in_thread(SMALL_STACK, lambda text=text: _tokenize(ffi, lib, vocab, text.encode(), flags=0))
        _say(stage)


def _compute(ffi: Any, lib: Any, model: Any, *, decode: bool) -> None:
    """Make a context, and decode some tokens and one more where the weights are there: types and sizes are met then."""
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 64, 64, 64, 1, 1
    params.pooling_type = 0  # as every context of Llamafu: what a file says of pooling may end the process
    context = lib.llama_init_from_model(model, params)
    if context == ffi.NULL:
        return
    compute = _computing(lib, model)
    batch = lib.llama_batch_init(_FEW, 0, 1)
    for start, count in ((0, _FEW), (_FEW, 1)) if decode and compute else ():
        batch.n_tokens = count
        for i in range(count):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = 0, start + i, 1, 0
            batch.logits[i] = i == count - 1
        if compute(context, batch):
            break
        lib.llama_synchronize(context)
    lib.llama_batch_free(batch)
    lib.llama_free(context)


def _computing(lib: Any, model: Any) -> Any:
    """Return what computes with this model; None for an encoder with a decoder, which the parent refuses."""
    if not lib.llama_model_has_encoder(model):
        return lib.llama_decode
    alone = hasattr(lib, "llama_encode") and hasattr(lib, "llama_model_has_decoder") and not lib.llama_model_has_decoder(model)
    return lib.llama_encode if alone else None


def _end_after(seconds: int) -> None:
    alarm = getattr(importlib.import_module("_signal"), "alarm", None)  # the module signal takes 10 ms to import
    if alarm is not None:
        alarm(seconds)


def _say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def _every_byte() -> bytes:
    """Return characters that hold every byte of UTF-8, most of which no vocabulary has whole."""
    codes = [*range(1, 0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x10000, 61), *range(0x10000, 0x110000, 4099)]
    return " ".join(map(chr, codes)).encode()


def _words(count: int) -> list[str]:
    """Return short words of every kind with breaks between them: patterns that match over breaks are rare."""
    return [(char + pause) * (count // 2) for char in "a1-漢" for pause in " \n"]


def _runs(count: int) -> list[str]:
    """Return a run of every kind of character that a pre-tokenizer's patterns tell apart."""
    same = "Aa1-/ \n\r\t\x01漢가ㄅ\uff01ก\u0301ǅ😀"
    mixed = ("aA", "\r\n", "A\u0301", "1a")
    begun = ("<sentinel:" + "1" * count, "-" + "\n" * count, " " * count + "x", "1" * count + "x")
    return [*(char * count for char in same), *(pair * (count // 2) for pair in mixed), *begun]


def _in_thread(stack: int, job: Any) -> Any:
    """Run `job` on a stack of its own size and return what it returns."""
    ended, result = _thread.allocate_lock(), []
    ended.acquire()

    def run() -> None:
        try:
            result.append(job())
        finally:
            ended.release()

    _thread.stack_size(stack)
    _thread.start_new_thread(run, ())
    ended.acquire()
    return result[0]


def _tokenize(ffi: Any, lib: Any, vocab: Any, text: bytes, *, flags: int) -> bytes:
    """Return the tokens as int32; `flags` has 1 for special tokens added, 2 for those that the text spells."""
    capacity = len(text) + 8
    while True:
        tokens = ffi.new("llama_token[]", capacity)
        count = lib.llama_tokenize(vocab, text, len(text), tokens, capacity, bool(flags & 1), bool(flags & 2))
        if count >= 0:
            return bytes(ffi.buffer(tokens, 4 * count))
        if -count <= capacity:
            return b""
        capacity = -count


def _serve(ffi: Any, lib: Any, model: str) -> int:
    """Answer texts until stdin ends. A text is one byte of flags, its length (8 bytes) and itself; tokens the length first."""
    loaded = _load(lib, model, weights="left out")
    if loaded == ffi.NULL:
        return 1
    vocab = lib.llama_model_get_vocab(loaded)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(9):
        text = source.read(int.from_bytes(head[1:], "little"))
        stack = min(_LEAST_STACK + _PER_BYTE * len(text), _LARGEST_STACK)
        tokens = _in_thread(stack, lambda text=text, flags=head[0]: _tokenize(ffi, lib, vocab, text, flags=flags))
        target.write(len(tokens).to_bytes(8, "little") + tokens)
        target.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
