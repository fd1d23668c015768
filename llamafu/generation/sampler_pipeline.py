"""The samplers of one generation in their order, up to the draw."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llamafu._native.sampler import SamplerChain
from llamafu.generation.mirostat import Mirostat
from llamafu.generation.penalties import FAR
from llamafu.generation.sampler_order import order_of
from llamafu.generation.typical import typical_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu._native.context import Context
    from llamafu._native.model import Model
    from llamafu.generation.options import Options

    Stage = Callable[[NDArray[np.int64], NDArray[np.float32]], tuple[NDArray[np.int64], NDArray[np.float32]]]

_SHIFTED = 1e6
"""Logits of at least this size are shifted so that the best is 0: libllama sorts by integer buckets."""
_MAY_DROP_BEST = {"typical_p", "xtc"}
"""Samplers that may take the likeliest token away."""


class LogitStep(Protocol):
    """Changes the logits of all tokens in place."""

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change `logits`, shape [n_vocab]."""


class SamplerPipeline:
    """Filters of the candidate tokens, then the draw, or with temperature 0 the likeliest that is left. One thread at a time.

    `steps` are those that change logits, by name, where they are on. The ones that come first in the order, as all of them do
    in llama.cpp's, are left to the caller: `leading` names them.

    Where libllama's samplers follow each other they make one chain. Greedy decoding without samplers that may take the
    likeliest token away has no stages at all.
    """

    def __init__(self, model: Model, options: Options, seed: int, steps: Mapping[str, LogitStep]) -> None:
        self._model = model
        self._options = options
        self._seed = seed
        self._steps = steps
        self._chains: list[SamplerChain] = []
        self._stages: list[Stage] = []
        self._last: SamplerChain | None = None
        self.mirostat = Mirostat(options, model.n_vocab) if options.mirostat and options.temperature > 0 else None
        acting = _filters_of(options) | steps.keys()
        names = [name for name in order_of(options.sampler_names) if name in acting]
        self.leading = tuple(takewhile(steps.__contains__, names))
        try:
            self._build(names[len(self.leading) :])
        except BaseException:
            self.close()
            raise

    def _build(self, names: Sequence[str]) -> None:
        is_greedy = self._options.temperature == 0
        if is_greedy:
            names = names[: names.index("temperature")] if "temperature" in names else names
            if not any(name in _MAY_DROP_BEST or name in self._steps for name in names):
                return
        for name in names:
            if name in self._steps:
                self._add_stage(self._scattered(self._steps[name]))
            elif name == "typical_p":
                self._add_stage(self._typical)
            else:
                self._add_link(name)
        if is_greedy:
            self._close_segment()
        elif self.mirostat is not None:
            if "temperature" not in names:
                self._add_link("temperature")
            self._add_stage(self.mirostat.filter)
        if not is_greedy:
            self._open_segment().add_distribution(self._seed)

    def _add_link(self, name: str) -> None:
        """Add a sampler of libllama's."""
        options, chain = self._options, self._open_segment()
        keep = max(1, options.min_keep)
        if name == "top_n_sigma":
            chain.add_top_n_sigma(options.top_n_sigma)
        elif name == "top_k":
            chain.add_top_k(options.top_k)
        elif name == "top_p":
            chain.add_top_p(options.top_p, keep)
        elif name == "min_p":
            chain.add_min_p(options.min_p, keep)
        elif name == "xtc":
            chain.add_xtc(options.xtc_probability, options.xtc_threshold, keep, self._seed)
        else:
            chain.add_temperature(min(max(options.temperature, 1 / FAR), FAR))

    def _open_segment(self) -> SamplerChain:
        if self._last is None:
            self._last = SamplerChain(self._model)
            self._chains.append(self._last)
        return self._last

    def _close_segment(self) -> None:
        if self._last is not None:
            self._stages.append(_finite(self._last))
            self._last = None

    def _add_stage(self, stage: Stage) -> None:
        self._close_segment()
        self._stages.append(stage)

    def _typical(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        kept = typical_tokens(logits, self._options.typical_p, self._options.min_keep)
        return tokens[kept], logits[kept]

    def _scattered(self, step: LogitStep) -> Stage:
        """Return a step as a stage: logits of all tokens, where those that are gone have -inf."""

        def stage(tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            row = np.full(self._model.n_vocab, -np.inf, np.float32)
            row[tokens] = logits
            step.apply(row)
            logits = row[tokens]
            bring_near(logits, int(logits.argmax()))
            return tokens, logits

        return stage

    def close(self) -> None:
        """Free the chains."""
        for chain in self._chains:
            chain.close()

    def sample(self, context: Context, row: int, logits: NDArray[np.float32], best: int) -> int:
        """Return the token of one output row of the batch, whose logits are `logits` and whose largest is at `best`."""
        if self._last is None and not self._stages:
            return best
        bring_near(logits, best)
        if self._stages:
            tokens = np.flatnonzero(logits > -np.inf)
            return self._choose(tokens, logits[tokens])
        assert self._last is not None  # noqa: S101 - one of both is there
        token = self._last.sample(context, row)
        return best if logits[token] == -np.inf else token  # a draw next to 1, in 32 bits

    def choose(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> int:
        """Return one of `tokens`, at least one of which has a finite logit; shape [n] each."""
        best = int(logits.argmax())
        if self._last is None and not self._stages:
            return int(tokens[best])
        bring_near(logits, best)
        possible = logits > -np.inf
        return self._choose(tokens[possible], logits[possible])

    def _choose(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> int:
        for stage in self._stages:
            tokens, logits = stage(tokens, logits)
        if self._last is None:
            return int(tokens[logits == logits.max()].min())
        return self._last.choose(tokens, logits)


def _filters_of(options: Options) -> set[str]:
    """Return the names of the samplers that are on, those that change logits left out."""
    if options.mirostat:
        return {"temperature"}
    found = {
        "top_n_sigma": options.top_n_sigma > 0,
        "top_k": options.top_k > 0,
        "typical_p": options.typical_p < 1,
        "top_p": options.top_p < 1,
        "min_p": options.min_p > 0,
        "xtc": options.xtc_probability > 0,
        "temperature": True,
    }
    return {name for name, is_on in found.items() if is_on}


def _finite(chain: SamplerChain) -> Stage:
    """Return a chain as a stage that drops what the chain gives -inf."""

    def stage(tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        tokens, logits = chain.filter(tokens, logits)
        possible = logits > -np.inf
        return tokens[possible], logits[possible]

    return stage


def bring_near(logits: NDArray[np.float32], best: int) -> None:
    """Subtract the best logit from all when it is far from 0; probabilities do not change, and what is finite stays finite."""
    if abs(logits[best]) > _SHIFTED:
        possible = logits > -np.inf
        with np.errstate(over="ignore"):
            logits -= logits[best]
        logits[possible] = np.maximum(logits[possible], -FAR)
