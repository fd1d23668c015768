"""Choosing the next token from one row of logits."""

from __future__ import annotations

import hashlib
import math
import secrets
from typing import TYPE_CHECKING, Any

from llamafu._native.sampler import Sampler
from llamafu.completion import TokenLogprob
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llamafu._native.context import Context
    from llamafu._native.model import Model
    from llamafu.options import Options

PENALTY_WINDOW = 64
"""Penalties look at so many tokens back, prompt included: libllama's own default."""
_SEEDS = 2**32 - 1
"""So many seeds libllama has; the next number it takes for "draw one"."""


class Picker:
    """Picks tokens for one generation, with a random stream of its own; one thread at a time.

    Order of the links: penalties, grammar, top-k, top-p, min-p, temperature, draw.
    Plain greedy needs no chain: NumPy's argmax over the logits is faster than building candidates.
    """

    def __init__(self, model: Model, options: Options, prompt: Sequence[int]) -> None:
        self._model = model
        self._options = options
        self._banned = list(model.end_tokens) if options.ignore_eos else []
        self.seed = _seed(options.seed)
        grammar = _grammar(options)
        self._chain: Sampler | None = None
        if options.temperature == 0 and not options.penalises and grammar is None:
            return
        self._chain = chain = Sampler(model)
        try:
            self._build(chain, grammar, prompt)
        except BaseException:
            chain.close()
            raise

    def _build(self, chain: Sampler, grammar: str | None, prompt: Sequence[int]) -> None:
        options = self._options
        if options.penalises:
            chain.add_penalties(PENALTY_WINDOW, options.repeat_penalty, options.frequency_penalty, options.presence_penalty)
            for token in prompt[-PENALTY_WINDOW:]:
                chain.accept(token)
        if grammar is not None:  # after the prompt was noted: the grammar is about new text alone
            chain.add_grammar(grammar)
        if options.temperature == 0:
            chain.add_greedy()
            return
        if options.top_k > 0:
            chain.add_top_k(options.top_k)
        if options.top_p < 1.0:
            chain.add_top_p(options.top_p)
        if options.min_p > 0.0:
            chain.add_min_p(options.min_p)
        chain.add_temperature(options.temperature)
        chain.add_distribution(self.seed)

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            self._chain.close()

    def pick(
        self, context: Context, row: int = -1, logits: np.ndarray[Any, np.dtype[np.float32]] | None = None
    ) -> tuple[int, TokenLogprob | None]:
        """Return the next token of one output row, and its logprob report if one was asked for.

        `row` is its place in the batch, the last output by default; `logits` is its view, if it is at hand.
        """
        logits = context.logits(row) if logits is None else logits
        if self._banned:
            logits[self._banned] = -float("inf")
        wanted = self._options.logprobs
        raw = logits.copy() if wanted is not None and self._chain is not None else logits
        token = best = int(logits.argmax())
        if not math.isfinite(logits[best]):  # NaN counts as largest
            message = f"the model's logits are not finite (token {best}: {logits[best]}); an adapter's weights may overflow"
            raise DecodeError(message)
        if self._chain is not None:
            token = self._chain.sample(context, row)
        return token, None if wanted is None else report(self._model, raw, token, wanted)


def report(model: Model, logits: np.ndarray[Any, np.dtype[np.float32]], token: int, count: int) -> TokenLogprob:
    """Natural-log probabilities of `token` and of the `count` most probable tokens under softmax(`logits`)."""
    import numpy as np

    logprobs = log_softmax(logits)
    count = min(count, len(logprobs))
    best = np.argpartition(-logits, count - 1)[:count] if count else np.empty(0, dtype=int)
    ordered = sorted(best.tolist(), key=lambda i: -logits[i])
    said, *spelled = (model.piece(i, special=True) for i in (token, *ordered))
    top = tuple((i, _text(piece), float(logprobs[i])) for i, piece in zip(ordered, spelled, strict=True))
    return TokenLogprob(token, _text(said), float(logprobs[token]), top, said, tuple(spelled))


def log_softmax(logits: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Natural-log probabilities of every token, shape [n_vocab], from finite logits."""
    import numpy as np

    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    return row


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _seed(seed: int | None) -> int:
    """Return libllama's seed, of 32 bits: the same number where it fits, a digest of it where it does not."""
    if seed is None or seed == -1:
        return secrets.randbelow(_SEEDS)
    if 0 <= seed < _SEEDS:
        return seed
    digest = hashlib.blake2b((seed % 2**64).to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SEEDS


def _grammar(options: Options) -> str | None:
    if options.json_schema is None:
        return options.grammar
    from llamafu.grammar import schema_to_gbnf

    schema = options.json_schema
    return schema_to_gbnf(schema if isinstance(schema, str) else dict(schema))
