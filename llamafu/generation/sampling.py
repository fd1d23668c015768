"""Choosing the next token from one row of logits."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamafu._native.sampler import SamplerChain
from llamafu.errors import DecodeError, GrammarError
from llamafu.generation.completion import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llamafu._native.context import Context
    from llamafu._native.model import Model
    from llamafu.generation.grammar.compiled import GrammarCache
    from llamafu.generation.grammar.constraint import Constraint
    from llamafu.generation.grammar.vocabulary import Vocabulary
    from llamafu.generation.options import Options

PENALTY_WINDOW = 64
"""Tokens that penalties look back at, the prompt's included: libllama's own default."""
ENDED = -1
"""Returned in place of a token when the grammar is complete and no end-of-text token can be chosen."""
_SEEDS = 2**32 - 1
"""Number of libllama's seeds; it reads 2**32 - 1 itself as "draw one"."""
_FAR = 1e30
"""Bound of penalised logits and of temperatures, so that 32-bit arithmetic yields no infinities or NaN."""
_SHIFTED = 1e6
"""Logits of at least this size are shifted so that the best is 0: libllama sorts by integer buckets."""


def constrain(model: Model, options: Options) -> Constraint | None:
    """Compile the grammar of a generation, if it has one. Slow: call it on the thread that makes the request.

    Raises GrammarError.
    """
    source = grammar_source(options)
    if source is None:
        return None
    from llamafu.generation.grammar import schema_to_gbnf
    from llamafu.generation.grammar.constraint import Constraint

    name, text = source
    return Constraint(model.derived(_grammars_of).get(source, lambda: text if name == "grammar" else schema_to_gbnf(text)))


def _grammars_of(model: Model) -> GrammarCache:
    from llamafu.generation.grammar.compiled import GrammarCache

    return GrammarCache(model.derived(vocabulary_of))


def vocabulary_of(model: Model) -> Vocabulary:
    """Return the vocabulary as grammars see it: control tokens write nothing."""
    from llamafu.generation.grammar.vocabulary import Vocabulary

    return Vocabulary([model.token_bytes(token) for token in range(model.n_vocab)], model.end_tokens, model.single_token)


class TokenSampler:
    """Chooses the tokens of one generation, with a random stream of its own. One thread at a time.

    Order: penalties, top-k, top-p, min-p, temperature, draw. libllama does the last five. Greedy decoding uses NumPy's argmax
    instead, which is faster than building libllama's list of candidates.

    A grammar is asked about the token that was chosen without it. Only where it refuses that one are all tokens looked at
    that it allows, and one of them chosen by the same samplers. So a token x that it allows has the probability
    p(x) + (1 - P) p(x) / P = p(x) / P, where P is the sum over those that it allows: the same as if the others had been
    taken out before the draw. Only where top-k, top-p or min-p take candidates away is it another one, since they do so
    among all tokens first: llama.cpp's order.
    """

    def __init__(self, model: Model, options: Options, prompt: Sequence[int], constraint: Constraint | None) -> None:
        self._model = model
        self._options = options
        self._constraint = constraint
        self._banned = list(model.end_tokens) if options.ignore_eos else []
        self._recent = deque(prompt[-PENALTY_WINDOW:], maxlen=PENALTY_WINDOW) if options.penalises else None
        self.seed = _seed(options.seed)
        self._chain: SamplerChain | None = None
        if options.temperature == 0:
            return
        self._chain = chain = SamplerChain(model)
        try:
            self._build(chain)
        except BaseException:
            chain.close()
            raise

    def _build(self, chain: SamplerChain) -> None:
        options = self._options
        if options.top_k > 0:
            chain.add_top_k(options.top_k)
        if options.top_p < 1.0:
            chain.add_top_p(options.top_p)
        if options.min_p > 0.0:
            chain.add_min_p(options.min_p)
        chain.add_temperature(min(max(options.temperature, 1 / _FAR), _FAR))
        chain.add_distribution(self.seed)

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            self._chain.close()

    @property
    def is_complete(self) -> bool:
        """Whether the grammar allows nothing after the text so far."""
        return self._constraint is not None and self._constraint.is_complete

    def pick(
        self, context: Context, row: int = -1, logits: np.ndarray[Any, np.dtype[np.float32]] | None = None
    ) -> tuple[int, TokenLogprob | None]:
        """Return the next token of one output row, and its log probabilities if they were asked for.

        `row` is its place in the batch, the last output by default; `logits` are its own, where the caller has them. Raises
        DecodeError when the logits are not finite, GrammarError when the grammar leaves nothing to choose from.
        """
        logits = context.logits(row) if logits is None else logits
        if self._banned:
            logits[self._banned] = -float("inf")
        wanted = self._options.logprobs
        raw = logits if wanted is None or self._recent is None else logits.copy()
        token = best = int(logits.argmax())
        if not math.isfinite(logits[best]):  # NaN counts as largest
            message = f"the model's logits are not finite (token {best}: {logits[best]}); an adapter's weights may overflow"
            raise DecodeError(message)
        if self._recent is not None:
            self._penalise(logits, self._recent)
            token = best = int(logits.argmax())
        if self._chain is not None:
            _bring_near(logits, best)
            token = self._chain.sample(context, row)
            if logits[token] == -math.inf:  # a draw next to 1, in 32 bits
                token = best
        if self._constraint is not None and not self._constraint.try_accept(token):
            token = self._allowed(logits, self._constraint)
            if token == ENDED:
                return ENDED, None
        if self._recent is not None:
            self._recent.append(token)
        return token, None if wanted is None else report(self._model, raw, token, wanted)

    def _penalise(self, logits: np.ndarray[Any, np.dtype[np.float32]], recent: deque[int]) -> None:
        """Apply the penalties to the recent tokens, by libllama's formula, with results bounded by `_FAR`."""
        options = self._options
        for token, count in Counter(recent).items():
            logit = float(logits[token])
            if logit == -math.inf:
                continue
            logit = logit / options.repeat_penalty if logit > 0 else logit * options.repeat_penalty
            logit = min(max(logit, -_FAR), _FAR) - (count * options.frequency_penalty + options.presence_penalty)
            logits[token] = min(max(logit, -_FAR), _FAR)

    def _allowed(self, logits: np.ndarray[Any, np.dtype[np.float32]], constraint: Constraint) -> int:
        """Choose one of the tokens that the grammar allows, `ENDED` when there is none and the text may end."""
        tokens = constraint.allowed()
        chosen = logits[tokens]
        if not len(chosen) or chosen.max() == -math.inf:
            if constraint.may_end:
                return ENDED
            if not len(chosen):
                constraint.refuse()
            message = f"grammar: the model gives each of the {len(tokens)} tokens that it allows here the probability 0"
            raise GrammarError(message)
        best = int(chosen.argmax())
        token = int(tokens[best])
        if self._chain is not None:
            _bring_near(chosen, best)
            possible = chosen > -math.inf
            token = self._chain.choose(tokens[possible], chosen[possible])
        constraint.accept(token)
        return token


def _bring_near(logits: np.ndarray[Any, np.dtype[np.float32]], best: int) -> None:
    """Subtract the best logit from all when it is far from 0; probabilities do not change."""
    if abs(logits[best]) > _SHIFTED:
        import numpy as np

        with np.errstate(over="ignore"):  # an overflow to -inf is a probability of 0 either way
            logits -= logits[best]


def report(model: Model, logits: np.ndarray[Any, np.dtype[np.float32]], token: int, count: int) -> TokenLogprob:
    """Natural-log probabilities of `token` and of the `count` most probable tokens under softmax(`logits`).

    Tokens with the logit -inf are not among them.
    """
    import numpy as np

    logprobs = log_softmax(logits)
    count = min(count, len(logprobs))
    best = np.argpartition(-logits, count - 1)[:count] if count else np.empty(0, dtype=int)
    ordered = sorted((i for i in best.tolist() if logits[i] > -math.inf), key=lambda i: -logits[i])
    own, *spelled = (model.token_bytes(i, special=True) for i in (token, *ordered))
    top = tuple((i, _text(piece), float(logprobs[i])) for i, piece in zip(ordered, spelled, strict=True))
    return TokenLogprob(token, _text(own), float(logprobs[token]), top, own, tuple(spelled))


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
    """Return a seed for libllama, which takes 32 bits: the same number where it fits, else a digest of it."""
    if seed is None or seed == -1:
        return secrets.randbelow(_SEEDS)
    if 0 <= seed < _SEEDS:
        return seed
    digest = hashlib.blake2b((seed % 2**64).to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SEEDS


def grammar_source(options: Options) -> tuple[str, str] | None:
    """Return the option that a grammar comes from and its text, None where there is none; GrammarError for no text."""
    if options.json_schema is None:
        if options.grammar is not None and not isinstance(options.grammar, str):
            message = f"grammar: {options.grammar!r} is no text; legal is GBNF as str"
            raise GrammarError(message)
        return None if options.grammar is None else ("grammar", options.grammar)
    if not isinstance(options.json_schema, str | Mapping):
        message = f"json_schema: {options.json_schema!r} is no schema; legal are a mapping and JSON text"
        raise GrammarError(message)
    from llamafu.generation.grammar.schema_text import schema_text

    schema = options.json_schema
    return "json_schema", schema if isinstance(schema, str) else schema_text(dict(schema))
