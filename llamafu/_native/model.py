"""A loaded model and its vocabulary."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from llamafu._native.checks import create, explain, not_null
from llamafu.errors import ClosedError, ModelLoadError, TokenizeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llamafu._native.library import Library
    from llamafu.grammar.vocabulary import Vocabulary

_ROOM = 256


class Model:
    """Owns a `llama_model`; immutable once loaded, so every method may run on any thread."""

    def __init__(self, library: Library, path: Path, *, n_gpu_layers: int = 0) -> None:
        self.library = library
        params = library.lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        made: list[Any] = []
        try:
            create(made, library.lib.llama_model_load_from_file, os.fsencode(path), params)
            self._pointer = not_null(library, made[0], ModelLoadError, f"cannot load the model {path}")
            library.logs.raise_interrupt()
            self._read_facts(path)
        except BaseException:
            self._pointer = made[0] if made and made[0] != library.ffi.NULL else None
            self.close()
            raise

    def _read_facts(self, path: Path) -> None:
        library, lib = self.library, self.library.lib
        vocab = lib.llama_model_get_vocab(self._pointer)
        self._vocab = not_null(library, vocab, ModelLoadError, f"the model {path} has no vocabulary")
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.n_embd = int(lib.llama_model_n_embd(self._pointer))
        self.n_layer = int(lib.llama_model_n_layer(self._pointer))
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self._pointer))
        self.size = int(lib.llama_model_size(self._pointer))
        self.parameter_count = int(lib.llama_model_n_params(self._pointer))
        self.is_recurrent = bool(lib.llama_model_is_recurrent(self._pointer)) or (
            library.has("llama_model_is_hybrid") and bool(lib.llama_model_is_hybrid(self._pointer))
        )
        if lib.llama_model_has_encoder(self._pointer):
            message = f"{path} is an encoder-decoder model; give a decoder-only one, its encoder would be left out"
            raise ModelLoadError(message)
        self.bos = int(lib.llama_vocab_bos(self._vocab))
        self.eos = int(lib.llama_vocab_eos(self._vocab))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(self._vocab))

    @property
    def pointer(self) -> Any:
        """The `llama_model *`; `ClosedError` once closed."""
        if self._pointer is None:
            message = "this model is closed; open a new Llamafu"
            raise ClosedError(message)
        return self._pointer

    def close(self) -> None:
        """Free the model; every context and adapter of it must be freed before. Idempotent."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self.library.lib.llama_model_free(pointer)

    def metadata(self, key: str) -> str | None:
        """Return one value of the GGUF metadata as text, None when the key is absent."""
        ffi, lib = self.library.ffi, self.library.lib
        size = lib.llama_model_meta_val_str(self.pointer, key.encode(), ffi.NULL, 0)
        if size < 0:
            return None
        room = ffi.new("char[]", size + 1)
        lib.llama_model_meta_val_str(self.pointer, key.encode(), room, size + 1)
        return bytes(ffi.buffer(room, size)).decode("utf-8", "replace")

    def describe(self) -> str:
        """Return the library's one-line description, such as "llama 135M Q4_1"."""
        room = self.library.ffi.new(f"char[{_ROOM}]")
        self.library.lib.llama_model_desc(self.pointer, room, _ROOM)
        return bytes(self.library.ffi.string(room)).decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """Return the model's own chat template (Jinja source), None when it has none."""
        ffi = self.library.ffi
        text = self.library.lib.llama_model_chat_template(self.pointer, ffi.NULL)
        return None if text == ffi.NULL else bytes(ffi.string(text)).decode("utf-8", "replace")

    def apply_known_template(self, template: str, messages: Sequence[tuple[str, str]]) -> str | None:
        """Format (role, content) pairs with the library's built-in rendition of `template`; None if it has none."""
        ffi, lib = self.library.ffi, self.library.lib
        keep = [(ffi.new("char[]", role.encode()), ffi.new("char[]", content.encode())) for role, content in messages]
        chat = ffi.new("struct llama_chat_message[]", [{"role": role, "content": content} for role, content in keep])
        size = lib.llama_chat_apply_template(template.encode(), chat, len(keep), True, ffi.NULL, 0)  # noqa: FBT003
        if size < 0:
            return None
        room = ffi.new("char[]", size + 1)
        lib.llama_chat_apply_template(template.encode(), chat, len(keep), True, room, size + 1)  # noqa: FBT003
        return bytes(ffi.buffer(room, size)).decode("utf-8", "replace")

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the token ids of UTF-8 `text`; `add_special` lets the vocabulary add its BOS and EOS."""
        ffi, lib = self.library.ffi, self.library.lib
        vocab = self._open_vocab()
        room = len(text) + 8
        while True:
            tokens = ffi.new("llama_token[]", room)
            count = lib.llama_tokenize(vocab, text, len(text), tokens, room, add_special, parse_special)
            if count >= 0:
                return list(ffi.unpack(tokens, count)) if count else []
            if -count <= room:
                message = f"the vocabulary cannot represent {text[:40]!r}"
                raise TokenizeError(explain(self.library, message))
            room = -count

    def detokenize(self, tokens: Sequence[int], *, special: bool) -> str:
        """Return the text of `tokens`; control tokens are spelled out when `special`."""
        return b"".join(self.piece(self._in_range(token), special=special) for token in tokens).decode("utf-8", "replace")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token: perhaps a part of a character."""
        ffi, lib = self.library.ffi, self.library.lib
        room = ffi.new(f"char[{_ROOM}]")
        size = lib.llama_token_to_piece(self._open_vocab(), token, room, _ROOM, 0, special)
        if size < 0:
            room = ffi.new("char[]", -size)
            size = lib.llama_token_to_piece(self._open_vocab(), token, room, -size, 0, special)
        return bytes(ffi.buffer(room, size))

    def is_end(self, token: int) -> bool:
        """Tell whether `token` ends a generation (EOS, end of turn and their like)."""
        return bool(self.library.lib.llama_vocab_is_eog(self._open_vocab(), token))

    @functools.cached_property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends a generation."""
        return frozenset(token for token in range(self.n_vocab) if self.is_end(token))

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens' texts as grammars read them: control tokens write nothing."""
        from llamafu.grammar.vocabulary import Vocabulary

        return Vocabulary([self.piece(token) for token in range(self.n_vocab)], self.end_tokens, self._single_token)

    def _single_token(self, text: str) -> int | None:
        tokens = self.tokenize(text.encode(), add_special=False, parse_special=True)
        return tokens[0] if len(tokens) == 1 else None

    @property
    def vocab(self) -> Any:
        """The `llama_vocab *`, alive as long as the model."""
        return self._open_vocab()

    def _open_vocab(self) -> Any:
        if self._pointer is None:
            _ = self.pointer
        return self._vocab

    def _in_range(self, token: int) -> int:
        if not 0 <= token < self.n_vocab:
            message = f"token {token!r} is outside this vocabulary of {self.n_vocab} tokens"
            raise TokenizeError(message)
        return token
