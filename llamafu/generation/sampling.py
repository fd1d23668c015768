"""Choosing the next token from one row of logits."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamafu.errors import DecodeError, GrammarError, NoTokenLeftError
from llamafu.generation.completion import TokenLogprob
from llamafu.generation.logit_bias import logit_bias_of
from llamafu.generation.option_spec import texts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llamafu._native.context import Context
    from llamafu._native.model import Model
    from llamafu.generation.grammar.compiled import GrammarCache
    from llamafu.generation.grammar.constraint import Constraint
    from llamafu.generation.grammar.vocabulary import Vocabulary
    from llamafu.generation.options import Options
    from llamafu.generation.reasoning_budget import ReasoningBudget

ENDED = -1
"""Returned in place of a token when the grammar is complete and no end-of-text token can be chosen."""
_SEEDS = 2**32 - 1
"""Number of libllama's seeds; it reads 2**32 - 1 itself as "draw one"."""


def constrain(model: Model, options: Options) -> Constraint | None:
    """Compile the grammar of a generation, if it has one. Slow: call it on the thread that makes the request.

    Raises GrammarError.
    """
    source = grammar_source(options)
    if source is None:
        return None
    from llamafu.generation.grammar.constraint import Constraint

    return Constraint(model.derived(_grammars_of).get(source, lambda: _gbnf_of(*source)))


def prepare_samplers(model: Model, options: Options) -> None:
    """Check what depends on the vocabulary, and keep what takes time to find in it, for the samplers of these options.

    Slow, as `constrain` is. Raises ValueError.
    """
    logit_bias_of(model, options.logit_bias)
    if options.uses_dry:
        from llamafu.generation.dry_breakers import break_table_of

        break_table_of(model, options.breakers)


def _grammars_of(model: Model) -> GrammarCache:
    from llamafu.generation.grammar.compiled import GrammarCache

    return GrammarCache(model.derived(vocabulary_of))


def vocabulary_of(model: Model) -> Vocabulary:
    """Return the vocabulary as grammars see it: control tokens write nothing."""
    from llamafu.generation.grammar.vocabulary import Vocabulary

    return Vocabulary([model.token_bytes(token) for token in range(model.n_vocab)], model.end_tokens, model.single_token)


class TokenSampler:
    """Chooses the tokens of one generation, with a random stream of its own. One thread at a time.

    Order: logit bias, logits processor, then what `samplers` names, by default penalties, DRY, top-n-sigma, top-k, typical,
    top-p, min-p, XTC, temperature, then the draw. libllama does the filters but for typical, temperature and draw; what
    remembers the text is done here, since libllama's own would remember tokens that a grammar refuses. Greedy decoding uses
    NumPy's argmax instead, which is faster than building libllama's list of candidates.

    A grammar is asked about the token that was chosen without it. Only where it refuses that one are all tokens looked at
    that it allows, and one of them chosen by the same samplers. So a token x that it allows has the probability
    p(x) + (1 - P) p(x) / P = p(x) / P, where P is the sum over those that it allows: the same as if the others had been
    taken out before the draw. Only where a filter (top-n-sigma, top-k, typical, top-p, min-p, XTC, mirostat) takes candidates
    away is it another one, since they do so among all tokens first: llama.cpp's order.

    What `budget` says is due comes in place of what would be drawn, unless the grammar refuses it.
    """

    def __init__(
        self,
        model: Model,
        options: Options,
        prompt: Sequence[int],
        constraint: Constraint | None,
        budget: ReasoningBudget | None = None,
    ) -> None:
        from llamafu.generation.sampler_pipeline import SamplerPipeline
        from llamafu.generation.text_memory import TextMemory

        self._model = model
        self._options = options
        self._constraint = constraint
        self._budget = budget
        self._ends = list(model.end_tokens)
        self._made = 0
        self._stopped = False
        self._bias = logit_bias_of(model, options.logit_bias)
        self._memory = memory = TextMemory(model, options, prompt)
        self.seed = secrets.randbelow(_SEEDS) if options.seed is None or options.seed == -1 else options.seed
        """What makes the same draws again: the one that was asked for, or was drawn."""
        self._pipeline = pipeline = SamplerPipeline(model, options, _seed(self.seed), memory.steps)
        self._steps = tuple(memory.steps[name] for name in pipeline.leading)
        self._alters = bool(self._bias or options.logits_processor or self._steps)
        if pipeline.mirostat is not None:
            memory.learners.append(pipeline.mirostat)
        if budget is not None:
            memory.learners.append(budget)

    def close(self) -> None:
        """Free the samplers."""
        self._pipeline.close()

    @property
    def is_complete(self) -> bool:
        """Whether the answer ends with its newest token: the grammar allows nothing after it, or `stopping` says so."""
        return self._stopped or (self._constraint is not None and self._constraint.is_complete)

    def pick(
        self, context: Context, row: int = -1, logits: np.ndarray[Any, np.dtype[np.float32]] | None = None
    ) -> tuple[int, TokenLogprob | None]:
        """Return the next token of one output row, and its log probabilities if they were asked for.

        `row` is its place in the batch, the last output by default; `logits` are its own, where the caller has them. Raises
        DecodeError when the logits are not finite, GrammarError when the grammar leaves nothing to choose from,
        NoTokenLeftError when logit bias or logits processor do, and what the caller's own functions raise.
        """
        logits = context.logits(row) if logits is None else logits
        is_bound = self._options.ignore_eos or self._made < self._options.min_tokens
        if is_bound:
            logits[self._ends] = -math.inf
        wanted = self._options.logprobs
        raw = logits.copy() if wanted is not None and self._alters else logits
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):  # NaN counts as largest
            message = f"the model's logits are not finite (token {best}: {logits[best]}); an adapter's weights may overflow"
            raise DecodeError(message)
        if self._bias is not None or self._options.logits_processor is not None:
            best = self._change(logits, is_bound=is_bound)
        if self._steps:
            for step in self._steps:
                step.apply(logits)
            best = int(logits.argmax())
        token = self._due()
        if token is None:
            token = self._pipeline.sample(context, row, logits, best)
            if self._constraint is not None and not self._constraint.try_accept(token):
                token = self._allowed(logits, self._constraint)
                if token == ENDED:
                    return ENDED, None
        self._made += 1
        self._memory.append(token)
        if self._options.stopping is not None:
            self._stopped = bool(self._options.stopping(self._memory.tokens))
        return token, None if wanted is None else report(self._model, raw, token, wanted)

    def _due(self) -> int | None:
        """Take the token that ends reasoning beyond its budget; None where there is none, or the grammar refuses it."""
        due = None if self._budget is None else self._budget.due
        is_legal = due is None or self._constraint is None or self._constraint.try_accept(due)
        return due if is_legal else None

    def _change(self, logits: np.ndarray[Any, np.dtype[np.float32]], *, is_bound: bool) -> int:
        """Apply what the request itself does to the logits, and return the likeliest token.

        Raises NoTokenLeftError where no token is left, or what is no number.
        """
        if self._bias is not None:
            self._bias.apply(logits)
        if self._options.logits_processor is not None:
            self._options.logits_processor(self._memory.tokens, logits)
            if is_bound:
                logits[self._ends] = -math.inf
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            who = "logit_bias" if self._options.logits_processor is None else "logits_processor"
            what = "leaves no token" if logits[best] == -math.inf else f"makes the logit of token {best} {logits[best]}"
            message = f"{who} {what}; at least one logit has to be finite, and none infinite or NaN"
            raise NoTokenLeftError(message)
        return best

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
        token = self._pipeline.choose(tokens, chosen)
        constraint.accept(token)
        return token


def report(model: Model, logits: np.ndarray[Any, np.dtype[np.float32]], token: int, count: int) -> TokenLogprob:
    """Natural-log probabilities of `token` and of the `count` most probable tokens under softmax(`logits`).

    Tokens with the logit -inf are not among them.
    """
    total = _log_sum(logits)
    ordered = _likeliest(logits, min(count, len(logits)))
    own, *spelled = (model.token_bytes(i, special=True) for i in (token, *ordered))
    top = tuple((i, _text(piece), float(logits[i]) - total) for i, piece in zip(ordered, spelled, strict=True))
    return TokenLogprob(token, _text(own), float(logits[token]) - total, top, own, tuple(spelled))


def _log_sum(logits: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Natural log of the sum of exp(logits): exp in float32, which is a tenth of the time, the sum in float64."""
    import numpy as np

    largest = logits.max()
    with np.errstate(over="ignore"):  # what lies farther below than a float32 can say adds nothing
        total = np.exp(logits - largest).sum(dtype=np.float64)
    return float(largest) + math.log(float(total))


def _likeliest(logits: np.ndarray[Any, np.dtype[np.float32]], count: int) -> list[int]:
    """Return the tokens with the `count` largest logits, the largest first, without those at -inf."""
    import numpy as np

    if count <= 1:
        return [int(logits.argmax())] if count else []
    best = np.argpartition(-logits, count - 1)[:count]
    return sorted((i for i in best.tolist() if logits[i] > -math.inf), key=lambda i: -logits[i])


def log_softmax(logits: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Natural-log probabilities of every token, shape [n_vocab], from finite logits."""
    import numpy as np

    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    return row


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _seed(seed: int) -> int:
    """Return a seed for libllama, which takes 32 bits: the same number where it fits, else a digest of it."""
    if 0 <= seed < _SEEDS:
        return seed
    digest = hashlib.blake2b((seed % 2**64).to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SEEDS


def grammar_source(options: Options) -> tuple[str, Any] | None:
    """Return the option that a grammar comes from and its value, which can be compared; None where there is none.

    GrammarError for what is no text.
    """
    if options.choices:
        return "choices", texts_of(options.choices)
    for name in ("grammar", "regex"):
        text = getattr(options, name)
        if text is not None:
            if not isinstance(text, str):
                message = f"{name}: {text!r} is no text; legal is {'GBNF' if name == 'grammar' else 'a pattern'} as str"
                raise GrammarError(message)
            return name, text
    if options.json_schema is None:
        return None
    if not isinstance(options.json_schema, str | Mapping):
        message = f"json_schema: {options.json_schema!r} is no schema; legal are a mapping and JSON text"
        raise GrammarError(message)
    from llamafu.generation.grammar.schema_text import schema_text

    schema = options.json_schema
    return "json_schema", schema if isinstance(schema, str) else schema_text(dict(schema))


def _gbnf_of(name: str, value: Any) -> str:
    """Return the grammar that the option `name` asks for."""
    if name == "grammar":
        return str(value)
    from llamafu.generation.grammar import choices_to_gbnf, regex_to_gbnf, schema_to_gbnf

    return {"json_schema": schema_to_gbnf, "regex": regex_to_gbnf, "choices": choices_to_gbnf}[name](value)
