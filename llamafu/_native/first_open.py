"""The child process that opens a model file first, and that tokenises long texts: a crash of libllama ends only this process.

    python -I -S first_open.py SITE FOLDER FAMILY LIBRARY PLUGIN MODEL try|serve

To start in some 20 ms it imports no more than it needs: SITE is the folder of cffi's extension module, FOLDER that of the
compiled families (or, for a family read from a header, that of the package). "try" prints a word for each stage that has
passed; "serve" reads texts from stdin and writes their tokens to stdout. libllama's error lines go to stderr.
"""

from __future__ import annotations

import _thread
import importlib
import os
import sys
import time
from typing import Any

SMALL_STACK, SHORT = 128 * 1024, 2000
"""Bytes of stack, and characters of a run that overflows it in a pre-tokenizer that recurses for every character."""
_PER_BYTE, _LEAST_STACK, _LARGEST_STACK = 1024, 1 << 20, 1 << 28
"""Bytes of stack for each byte of a text (twice the most that was measured), and the least and the most for any text. Pages of
a stack take memory only once they are touched."""
_MEMORY = 8 << 30
"""Bytes of address space beyond twice the size of the model."""
_SMALL_MODEL = 32 << 20
"""Bytes up to which a model is loaded with its weights and computed with: that takes some milliseconds."""
_BATCH_TOKENS = 5
_SECONDS = 3
"""Limit for all the texts that are tried, which take some 20 ms."""
_ABORTED = 3
"""Exit status of a process that ends itself where the system has no alarm for it."""
_ERROR, _CONTINUED = 4, 5


def main(arguments: list[str]) -> int:
    """Run the task that the command line names; the exit status is 0 unless the model cannot be served."""
    site, folder, family, path, plugin, model, task = arguments
    bound_memory(model)
    sys.path += [folder, site]
    if family.startswith("header:"):
        ffi: Any = importlib.import_module("llamafu._native.abi.families").load(family).ffi
        opener = importlib.import_module("llamafu._native.abi.shared_library")
    else:
        ffi = importlib.import_module(family).ffi
        opener = importlib.import_module("shared_library")
    lib = opener.open_shared(ffi, path)
    errors = _Errors(ffi)
    callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", errors.receive)
    lib.llama_log_set(callback, ffi.NULL)
    lib.llama_backend_init()
    if plugin:
        lib.ggml_backend_load(opener.plugin_path(plugin))
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
    """Limit the address space, since a damaged number may ask for all memory, and leave no core file, where the system can.

    Windows has no such limits, and macOS refuses those that are below what every program has mapped at its start.
    """
    try:
        import resource
    except ImportError:
        return
    size = os.stat(model).st_size if os.path.exists(model) else 0  # noqa: PTH110, PTH116 - pathlib takes 10 ms to import
    for kind, soft, hard in ((resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_AS, _MEMORY + 2 * size, resource.RLIM_INFINITY)):
        try:
            resource.setrlimit(kind, (soft, hard))
        except (ValueError, OSError):
            continue


def _load(lib: Any, model: str, *, weights: str) -> Any:
    """Load a model with `weights` "all", "claimed" (their shapes are checked, no data is read) or "left out"."""
    params = lib.llama_model_default_params()
    if weights == "claimed":
        params.no_alloc, params.load_mode = True, 0
    elif weights == "left out":
        params.vocab_only = True
    return lib.llama_model_load_from_file(os.fsencode(model), params)


def try_model(ffi: Any, lib: Any, model: str) -> None:
    """Print "opened", "computes", "tokenizes", "spells", "words" and "flat", each once its stage has passed."""
    fields = {name for name, _ in ffi.typeof("struct llama_model_params").fields}
    # A small model is computed with too. Older builds load either everything or the vocabulary alone.
    whole = os.stat(model).st_size <= _SMALL_MODEL  # noqa: PTH116 - as below
    weights = "all" if whole else "claimed" if "load_mode" in fields else "left out"
    loaded = _load(lib, model, weights=weights)
    if loaded == ffi.NULL:
        _say("refused")  # by a return code: the parent's own load gets it too, and reports it
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
    """Make a context and, with `decode`, decode a batch and one more token, so that kernels run on the file's types."""
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 64, 64, 64, 1, 1
    params.pooling_type = 0  # as in every context of Llamafu: libllama aborts on some values that a file may have
    context = lib.llama_init_from_model(model, params)
    if context == ffi.NULL:
        return
    compute = _compute_function(lib, model)
    batch = lib.llama_batch_init(_BATCH_TOKENS, 0, 1)
    for start, count in ((0, _BATCH_TOKENS), (_BATCH_TOKENS, 1)) if decode and compute else ():
        batch.n_tokens = count
        for i in range(count):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = 0, start + i, 1, 0
            batch.logits[i] = i == count - 1
        if compute(context, batch):
            break
        lib.llama_synchronize(context)
    lib.llama_batch_free(batch)
    lib.llama_free(context)


def _compute_function(lib: Any, model: Any) -> Any:
    """Return the function that computes with this model; None for an encoder-decoder, which the parent refuses."""
    if not lib.llama_model_has_encoder(model):
        return lib.llama_decode
    alone = hasattr(lib, "llama_encode") and hasattr(lib, "llama_model_has_decoder") and not lib.llama_model_has_decoder(model)
    return lib.llama_encode if alone else None


def _end_after(seconds: int) -> None:
    alarm = getattr(importlib.import_module("_signal"), "alarm", None)  # the module signal takes 10 ms to import
    if alarm is not None:
        alarm(seconds)
        return

    def end() -> None:
        time.sleep(seconds)
        os._exit(_ABORTED)

    _thread.start_new_thread(end, ())


def _say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def _every_byte() -> bytes:
    """Return text whose UTF-8 has every possible byte; few of its characters are in any vocabulary."""
    codes = [*range(1, 0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x10000, 61), *range(0x10000, 0x110000, 4099)]
    return " ".join(map(chr, codes)).encode()


def _words(count: int) -> list[str]:
    """Return texts of one-character words with white space between them, for the few patterns that match across it."""
    return [(char + pause) * (count // 2) for char in "a1-漢" for pause in " \n"]


def _runs(count: int) -> list[str]:
    """Return long runs of every class of character that the patterns of pre-tokenizers tell apart, and of some mixtures."""
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
    """Tokenise texts until stdin ends.

    A request is one byte of flags, 8 bytes of length (little-endian) and the text; an answer 8 bytes of length and the tokens.
    """
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
