"""A chain of libllama's samplers: filters of the candidate tokens, and the draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu._native.checks import not_null
from llamafu.errors import ClosedError, ErrorCode, LlamafuError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from llamafu._native.context import Context
    from llamafu._native.model import Model

_ENTRY = [("id", "int32"), ("logit", "float32"), ("p", "float32")]
"""A `llama_token_data` as a dtype of NumPy."""


class SamplerChain:
    """Owns a `llama_sampler` chain; links are added in the order in which they act. One thread at a time."""

    def __init__(self, model: Model) -> None:
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

    def add_top_k(self, k: int) -> None:
        """Keep the k most probable tokens."""
        self._add(self._library.lib.llama_sampler_init_top_k(k), "top_k")

    def add_top_p(self, p: float, min_keep: int = 1) -> None:
        """Keep the smallest set of tokens whose probability reaches p, at least `min_keep`."""
        self._add(self._library.lib.llama_sampler_init_top_p(p, min_keep), "top_p")

    def add_min_p(self, p: float, min_keep: int = 1) -> None:
        """Keep tokens at least p times as probable as the best, at least `min_keep`."""
        self._add(self._library.lib.llama_sampler_init_min_p(p, min_keep), "min_p")

    def add_top_n_sigma(self, n: float) -> None:
        """Give -inf to logits more than n standard deviations below the best."""
        self._demand("llama_sampler_init_top_n_sigma", "top_n_sigma")
        self._add(self._library.lib.llama_sampler_init_top_n_sigma(n), "top_n_sigma")

    def add_xtc(self, probability: float, threshold: float, min_keep: int, seed: int) -> None:
        """With `probability`, drop the tokens of at least `threshold` but the least probable of them, if `min_keep` stay."""
        self._demand("llama_sampler_init_xtc", "xtc")
        self._add(self._library.lib.llama_sampler_init_xtc(probability, threshold, min_keep, seed), "xtc")

    def add_temperature(self, temperature: float) -> None:
        """Divide the logits by `temperature`."""
        self._add(self._library.lib.llama_sampler_init_temp(temperature), "temperature")

    def add_distribution(self, seed: int) -> None:
        """Draw by probability, from a random stream of its own."""
        self._add(self._library.lib.llama_sampler_init_dist(seed), "distribution")

    def _add(self, link: Any, name: str) -> None:
        not_null(self._library, link, LlamafuError, f"cannot make the sampler {name}")
        self._library.lib.llama_sampler_chain_add(self.pointer, link)

    def _demand(self, symbol: str, name: str) -> None:
        if not self._library.has(symbol):
            message = f"this libllama ({self._library.path}) has no sampler {name}; leave it off or use a newer build"
            raise UnsupportedError(message)

    def sample(self, context: Context, index: int = -1) -> int:
        """Pick a token from one output row, and let every link of the chain record it."""
        return int(self._library.lib.llama_sampler_sample(self.pointer, context.pointer, index))

    def filter(self, tokens: ArrayLike, logits: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Run the chain over these tokens; return those that stay, with their logits. Their order is the chain's."""
        import numpy as np

        array, memory = self._applied(tokens, logits)
        size = int(array.size) * self._library.ffi.sizeof("struct llama_token_data")
        kept = np.frombuffer(self._library.ffi.buffer(array.data, size), _ENTRY)
        found = kept["id"].astype(np.int64), kept["logit"].copy()
        del memory
        return found

    def choose(self, tokens: ArrayLike, logits: ArrayLike) -> int:
        """Pick one of these tokens; the links do not record it."""
        array, data = self._applied(tokens, logits)
        if not 0 <= array.selected < int(array.size):
            message = f"the sampler chain selected entry {array.selected} of {array.size} out of {len(data)}"
            raise LlamafuError(message, code=ErrorCode.UNKNOWN)
        return int(array.data[array.selected].id)

    def _applied(self, tokens: ArrayLike, logits: ArrayLike) -> tuple[Any, Any]:
        """Return the `llama_token_data_array *` after the chain, and the memory that it points into."""
        import numpy as np

        ffi = self._library.ffi
        data = np.zeros(np.size(tokens), _ENTRY)
        data["id"], data["logit"] = tokens, logits
        first = ffi.from_buffer("struct llama_token_data[]", data)
        array = ffi.new("struct llama_token_data_array *", {"data": first, "size": len(data), "selected": -1, "sorted": False})
        self._library.lib.llama_sampler_apply(self.pointer, array)
        return array, (first, data)
