"""A chain of libllama's samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu._native.checks import not_null
from llamafu.errors import ClosedError, ErrorCode, GrammarError, LlamafuError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu._native.context import Context
    from llamafu._native.model import Model

_PENALTIES_WITH_VOCAB = 5


class Sampler:
    """Owns a `llama_sampler` chain; links are added in the order in which they act. One thread at a time."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._library = model.library
        lib = self._library.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._chain = not_null(self._library, chain, LlamafuError, "cannot make a sampler chain")

    @property
    def pointer(self) -> Any:
        """The `llama_sampler *`; `ClosedError` once closed."""
        if self._chain is None:
            message = "this sampler is closed"
            raise ClosedError(message)
        return self._chain

    def close(self) -> None:
        """Free the chain and its links. Idempotent."""
        chain, self._chain = self._chain, None
        if chain is not None:
            self._library.lib.llama_sampler_free(chain)

    def add_penalties(self, last_n: int, repeat: float, frequency: float, presence: float) -> None:
        """Penalise tokens among the last `last_n` (the signature gained the vocabulary size in 2026)."""
        init = self._library.lib.llama_sampler_init_penalties
        arguments: tuple[float, ...] = (last_n, repeat, frequency, presence)
        if len(self._library.ffi.typeof(init).args) == _PENALTIES_WITH_VOCAB:
            arguments = (self._model.n_vocab, *arguments)
        self._add(init(*arguments), "penalties")

    def add_grammar(self, grammar: str) -> None:
        """Allow only text of the GBNF `grammar`, from its rule `root`."""
        library = self._library
        link = library.lib.llama_sampler_init_grammar(self._model.vocab, grammar.encode(), b"root")
        head = grammar.strip().splitlines()[0][:60] if grammar.strip() else ""
        message = f"the grammar cannot be parsed (it begins {head!r}; it needs a rule named root, in GBNF)"
        self._add(not_null(library, link, GrammarError, message), "grammar")

    def add_top_k(self, k: int) -> None:
        """Keep the k most probable tokens."""
        self._add(self._library.lib.llama_sampler_init_top_k(k), "top_k")

    def add_top_p(self, p: float) -> None:
        """Keep the smallest set of tokens whose probability reaches p."""
        self._add(self._library.lib.llama_sampler_init_top_p(p, 1), "top_p")

    def add_min_p(self, p: float) -> None:
        """Keep tokens at least p times as probable as the best."""
        self._add(self._library.lib.llama_sampler_init_min_p(p, 1), "min_p")

    def add_temperature(self, temperature: float) -> None:
        """Divide the logits by `temperature`."""
        self._add(self._library.lib.llama_sampler_init_temp(temperature), "temperature")

    def add_distribution(self, seed: int) -> None:
        """Draw by probability, from a random stream of its own."""
        self._add(self._library.lib.llama_sampler_init_dist(seed), "distribution")

    def add_greedy(self) -> None:
        """Take the most probable token."""
        self._add(self._library.lib.llama_sampler_init_greedy(), "greedy")

    def _add(self, link: Any, name: str) -> None:
        not_null(self._library, link, LlamafuError, f"cannot make the sampler {name}")
        self._library.lib.llama_sampler_chain_add(self.pointer, link)

    def sample(self, context: Context, index: int = -1) -> int:
        """Pick a token from one output row and let every link take note of it."""
        return int(self._library.lib.llama_sampler_sample(self.pointer, context.pointer, index))

    def accept(self, token: int) -> None:
        """Let every link take note of a token that was not sampled here."""
        self._library.lib.llama_sampler_accept(self.pointer, token)

    def apply(self, logits: Sequence[float]) -> list[tuple[int, float]]:
        """Run the chain over bare logits, return the surviving (token, logit) pairs, best first if sorted."""
        ffi = self._library.ffi
        data = ffi.new("struct llama_token_data[]", [{"id": i, "logit": float(x), "p": 0.0} for i, x in enumerate(logits)])
        array = ffi.new("struct llama_token_data_array *", {"data": data, "size": len(logits), "selected": -1, "sorted": False})
        self._library.lib.llama_sampler_apply(self.pointer, array)
        if array.selected >= int(array.size):
            message = f"the sampler chain selected entry {array.selected} of {array.size}"
            raise LlamafuError(message, code=ErrorCode.UNKNOWN)
        return [(int(array.data[i].id), float(array.data[i].logit)) for i in range(array.size)]
