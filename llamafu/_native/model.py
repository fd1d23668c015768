"""A loaded model and its vocabulary."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llamafu._native.checks import create, explain, not_null
from llamafu._native.long_texts import LongTexts
from llamafu._native.placement import Placement
from llamafu.errors import ClosedError, ModelLoadError, TokenizeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llamafu._native.library import Library
    from llamafu._native.model_check import CheckedModel

T = TypeVar("T")
_BUFFER_BYTES = 256
"""Of the buffer that short texts are written to first."""


class Model:
    """Owns a `llama_model`; immutable once loaded, so every method may run on any thread.

    `reads_whole`: attention is not causal, so that a text must be computed in one batch. `is_encoder`: libllama computes it
    by `llama_encode` alone (T5's encoder). `n_embd_out` is the width of the vectors that come out, `n_embd_inp` that of
    rows given in place of tokens. `checked` says which texts must not be tokenised in this process; without it, all are.
    `placement`: by default the CPU computes all.
    """

    def __init__(
        self, library: Library, path: Path, *, placement: Placement | None = None, checked: CheckedModel | None = None
    ) -> None:
        self.library = library
        self.path = path
        self._derived: dict[Callable[[Model], Any], Any] = {}
        # Each call of libllama gives the interpreter away, and log probabilities would make twenty for every token.
        self._token_bytes: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        self._long_texts = None if checked is None else LongTexts(library, checked)
        params = library.lib.llama_model_default_params()
        kept = (placement or Placement()).fill(library, params)
        made: list[Any] = []
        try:
            create(made, library.lib.llama_model_load_from_file, os.fsencode(path), params)
            self._pointer = not_null(library, made[0], ModelLoadError, f"cannot load the model {path}")
            del kept
            library.logs.raise_interrupt()
            self._read_properties(path)
        except BaseException:
            self._pointer = made[0] if made and made[0] != library.ffi.NULL else None
            self.close()
            raise

    def _read_properties(self, path: Path) -> None:
        """Read what never changes of a model; refuse one without a vocabulary, and an encoder-decoder."""
        library, lib = self.library, self.library.lib
        vocab = lib.llama_model_get_vocab(self._pointer)
        self._vocab = not_null(library, vocab, ModelLoadError, f"the model {path} has no vocabulary")
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.n_embd = int(lib.llama_model_n_embd(self._pointer))
        wider = library.has("llama_model_n_embd_out")  # older builds: as wide as those that go in
        self.n_embd_out = int(lib.llama_model_n_embd_out(self._pointer)) if wider else self.n_embd
        given = library.has("llama_model_n_embd_inp")  # some models' graphs take rows of several layers' embeddings, end to end
        self.n_embd_inp = int(lib.llama_model_n_embd_inp(self._pointer)) if given else self.n_embd
        self.n_layer = int(lib.llama_model_n_layer(self._pointer))
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self._pointer))
        self.size = int(lib.llama_model_size(self._pointer))
        self.parameter_count = int(lib.llama_model_n_params(self._pointer))
        self.is_recurrent = bool(lib.llama_model_is_recurrent(self._pointer)) or (
            library.has("llama_model_is_hybrid") and bool(lib.llama_model_is_hybrid(self._pointer))
        )
        encodes = bool(lib.llama_model_has_encoder(self._pointer))
        if encodes and (not library.has("llama_model_has_decoder") or lib.llama_model_has_decoder(self._pointer)):
            message = (
                f"{path} is an encoder-decoder model ({self.metadata('general.architecture')}), which neither completes nor "
                "embeds here: one of its halves would be left out; give a decoder-only model, or for vectors an encoder"
            )
            raise ModelLoadError(message)
        self.is_encoder = encodes
        self.reads_whole = encodes or self.metadata(f"{self.metadata('general.architecture')}.attention.causal") == "false"
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
        if self._long_texts is not None:
            self._long_texts.close()
        if pointer is not None:
            self.library.lib.llama_model_free(pointer)

    def metadata(self, key: str) -> str | None:
        """Return one value of the GGUF metadata as text, None when the key is absent."""
        ffi, lib = self.library.ffi, self.library.lib
        size = lib.llama_model_meta_val_str(self.pointer, key.encode(), ffi.NULL, 0)
        if size < 0:
            return None
        buffer = ffi.new("char[]", size + 1)
        lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, size + 1)
        return bytes(ffi.buffer(buffer, size)).decode("utf-8", "replace")

    def describe(self) -> str:
        """Return the library's one-line description, such as "llama 135M Q4_1"."""
        buffer = self.library.ffi.new(f"char[{_BUFFER_BYTES}]")
        self.library.lib.llama_model_desc(self.pointer, buffer, _BUFFER_BYTES)
        return bytes(self.library.ffi.string(buffer)).decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """Return the model's own chat template (Jinja source), None when it has none."""
        ffi = self.library.ffi
        text = self.library.lib.llama_model_chat_template(self.pointer, ffi.NULL)
        return None if text == ffi.NULL else bytes(ffi.string(text)).decode("utf-8", "replace")

    def apply_known_template(
        self, template: str, messages: Sequence[tuple[str, str]], *, add_generation_prompt: bool = True
    ) -> str | None:
        """Format (role, content) pairs with the library's built-in rendition of `template`; None if it has none."""
        ffi, lib = self.library.ffi, self.library.lib
        keep = [(ffi.new("char[]", role.encode()), ffi.new("char[]", content.encode())) for role, content in messages]
        chat = ffi.new("struct llama_chat_message[]", [{"role": role, "content": content} for role, content in keep])
        begin = add_generation_prompt
        size = lib.llama_chat_apply_template(template.encode(), chat, len(keep), begin, ffi.NULL, 0)
        if size < 0:
            return None
        buffer = ffi.new("char[]", size + 1)
        lib.llama_chat_apply_template(template.encode(), chat, len(keep), begin, buffer, size + 1)
        return bytes(ffi.buffer(buffer, size)).decode("utf-8", "replace")

    def tokenize(self, text: str | bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the token ids of `text` (bytes are UTF-8); `add_special` lets the vocabulary add its BOS and EOS.

        A text that could end the process, or hold it up, is tokenised in another one, for some seconds at most:
        `TokenizeError` where that does not succeed, and for a str that is no text (half of a surrogate pair); TypeError for
        what is neither str nor bytes.
        """
        if isinstance(text, str):
            text = _utf8(text)
        elif not isinstance(text, bytes):
            message = f"the text to tokenize must be a str, not {type(text).__name__}"
            raise TypeError(message)
        ffi, lib = self.library.ffi, self.library.lib
        vocab = self._open_vocab()
        if self._long_texts is not None and self._long_texts.must_take(text):
            return self._long_texts.tokenize(text, add_special=add_special, parse_special=parse_special)
        capacity = len(text) + 8
        while True:
            tokens = ffi.new("llama_token[]", capacity)
            count = lib.llama_tokenize(vocab, text, len(text), tokens, capacity, add_special, parse_special)
            if count >= 0:
                return list(ffi.unpack(tokens, count)) if count else []
            if -count <= capacity:
                message = f"the vocabulary cannot represent {text[:40]!r}"
                raise TokenizeError(explain(self.library, message))
            capacity = -count

    def detokenize(self, tokens: Sequence[int], *, special: bool) -> str:
        """Return the text of `tokens`; control tokens are spelled out when `special`.

        A text that was tokenised without BOS comes back without the space that the vocabulary put before it. libllama cleans
        some vocabularies' texts of spaces before marks; that is kept where the result gives the same tokens again.
        """
        given = [self.checked(token) for token in tokens]
        cleaned = self._cleaned(given, special=special)
        whole = b"".join(self.token_bytes(token, special=special) for token in given)
        if cleaned != whole and self._drops_first_space:
            whole = whole.removeprefix(b" ")
        if cleaned != whole and self._tokens_of(cleaned, parse_special=special) == given:
            whole = cleaned
        return whole.decode("utf-8", "replace")

    def _tokens_of(self, text: bytes, *, parse_special: bool) -> list[int]:
        """Return the tokens of a text; none where the vocabulary cannot spell it."""
        try:
            return self.tokenize(text, add_special=False, parse_special=parse_special)
        except TokenizeError:
            return []

    @functools.cached_property
    def _drops_first_space(self) -> bool:
        """Whether the vocabulary puts a space before a text, which libllama takes away again."""
        tokens = self._tokens_of(b"a", parse_special=False)
        return b"".join(map(self.token_bytes, tokens)) == b" a" and self._cleaned(tokens, special=False) == b"a"

    def _cleaned(self, tokens: Sequence[int], *, special: bool) -> bytes:
        """Return what libllama's own detokenizer makes of checked tokens."""
        ffi, lib = self.library.ffi, self.library.lib
        given = ffi.new("llama_token[]", tokens)
        size = 8 * len(given) + _BUFFER_BYTES
        while True:
            buffer = ffi.new("char[]", size)
            count = lib.llama_detokenize(self._open_vocab(), given, len(given), buffer, size, False, special)  # noqa: FBT003
            if count >= 0:
                return bytes(ffi.buffer(buffer, count))
            size = -count

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token: perhaps a part of a character."""
        known = self._token_bytes[special].get(token)
        if known is None:
            known = self._token_bytes[special][token] = self._read_token_bytes(token, special)
        return known

    def spelled(self, token: int) -> str:
        """Return the text of one token, of a control token what it is called; empty for -1, which is no token."""
        return self.token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _read_token_bytes(self, token: int, special: bool) -> bytes:  # noqa: FBT001 - a private half of the method above
        ffi, lib = self.library.ffi, self.library.lib
        buffer = ffi.new(f"char[{_BUFFER_BYTES}]")
        size = lib.llama_token_to_piece(self._open_vocab(), token, buffer, _BUFFER_BYTES, 0, special)
        if size < 0:
            buffer = ffi.new("char[]", -size)
            size = lib.llama_token_to_piece(self._open_vocab(), token, buffer, -size, 0, special)
        return bytes(ffi.buffer(buffer, size))

    def is_end(self, token: int) -> bool:
        """Tell whether `token` ends a generation (EOS, end of turn and their like)."""
        return bool(self.library.lib.llama_vocab_is_eog(self._open_vocab(), token))

    @functools.cached_property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends a generation."""
        return frozenset(token for token in range(self.n_vocab) if self.is_end(token))

    def derived(self, make: Callable[[Model], T]) -> T:
        """Return `make(self)`, which is called once and cached for the life of the model."""
        if make not in self._derived:
            self._derived[make] = make(self)
        return cast("T", self._derived[make])

    def single_token(self, text: str) -> int | None:
        """Return the token of a text such as `<|end|>`; None when the text is not exactly one token."""
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

    def checked(self, token: int) -> int:
        """Return a token; `TokenizeError` for a number that is none of this vocabulary."""
        if not (hasattr(token, "__index__") and 0 <= token < self.n_vocab):
            message = f"token {token!r} is outside this vocabulary of {self.n_vocab} tokens"
            raise TokenizeError(message)
        return token


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half, place = text[error.start], error.start
        message = f"the text holds {half!r} at character {place}: half of a surrogate pair, which is no character; leave it out"
        raise TokenizeError(message) from None
