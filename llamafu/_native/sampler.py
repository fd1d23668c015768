"""A chain of libllama's samplers: filters of the candidate tokens, and the draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu._native.checks import not_null
from llamafu.errors import ClosedError, ErrorCode, LlamafuError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from llamafu._native.context import Context
    from llamafu._native.model import Model


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

    def _add(self, link: Any, name: str) -> None:
        not_null(self._library, link, LlamafuError, f"cannot make the sampler {name}")
        self._library.lib.llama_sampler_chain_add(self.pointer, link)

    def sample(self, context: Context, index: int = -1) -> int:
        """Pick a token from one output row, and let every link of the chain record it."""
        return int(self._library.lib.llama_sampler_sample(self.pointer, context.pointer, index))

    def apply(self, tokens: ArrayLike, logits: ArrayLike) -> list[tuple[int, float]]:
        """Run the chain over these tokens, return the surviving (token, logit) pairs, best first if sorted."""
        array, _ = self._applied(tokens, logits)
        return [(int(array.data[i].id), float(array.data[i].logit)) for i in range(array.size)]

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
        data = np.zeros(np.size(tokens), dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        data["id"], data["logit"] = tokens, logits
        first = ffi.from_buffer("struct llama_token_data[]", data)
        array = ffi.new("struct llama_token_data_array *", {"data": first, "size": len(data), "selected": -1, "sorted": False})
        self._library.lib.llama_sampler_apply(self.pointer, array)
        return array, (first, data)
