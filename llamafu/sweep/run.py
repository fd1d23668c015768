"""Running a sweep: every prompt under every mix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llamafu.sweep.divergence import divergences
from llamafu.sweep.mixes import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llamafu.generation.completion import Completion, FinishReason
    from llamafu.generation.options import LoraScales, OptionArguments
    from llamafu.lora.handles import LoraAdapter
    from llamafu.model.llamafu import Llamafu

    _Mix = Mapping[str, float] | Mapping[LoraAdapter, float] | Mapping[LoraAdapter | str, float]


@dataclass(frozen=True, slots=True)
class SweptAdapter:
    """An adapter that took part: its name, SHA-256 of its content, and the name of its file or folder."""

    name: str
    digest: str
    file: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt answered under one mix, {adapter name: scale}; {} is the base.

    `kls` holds KL(base || mix) in nats at each place of the base's own answer, which the mix is made to say: at its
    first token, which both choose after the same prompt, and so on. `kl` is the first of them, `mean_kl` their mean.
    An answer that is empty because the base ends at once has one place. `tokens_per_second` leaves the prompt and the
    first token out, and is None when there is no second one.
    """

    prompt: str
    mix: dict[str, float]
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    kl: float
    mean_kl: float
    kls: tuple[float, ...]
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found. `answers` go prompt by prompt, and within a prompt in the order of `mixes`, the base first.

    `places` holds, for each prompt, the text of every token of the base's answer: where the `kls` belong.
    """

    model: str
    library: str
    adapters: tuple[SweptAdapter, ...]
    chat: bool
    max_tokens: int
    temperature: float
    seed: int
    prompts: tuple[str, ...]
    mixes: tuple[dict[str, float], ...]
    places: tuple[tuple[str, ...], ...]
    answers: tuple[Answer, ...]

    def to(self, prompt: int) -> tuple[Answer, ...]:
        """Answers to the prompt of this index, in the order of `mixes`."""
        count = len(self.mixes)
        return self.answers[prompt * count : (prompt + 1) * count]

    def mean_kl(self, mix: int) -> float:
        """Mean KL of the mix of this index, in nats, over every place of all prompts."""
        kls = [kl for answer in self.answers[mix :: len(self.mixes)] for kl in answer.kls]
        return sum(kls) / len(kls)


def sweep(
    llm: Llamafu,
    prompts: Sequence[str],
    mixes: Sequence[_Mix],
    *,
    chat: bool = False,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    watch: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Answer every prompt by the base and under every mix, and measure how far each mix is from the base.

    A mix is {adapter or name: scale}. The adapters must be loaded; the active set plays no part and is left alone.
    `chat` asks each prompt as a user's message. All answers have the same `seed`; at temperature 0 it is not used.
    `watch` is called before each answer with its number, from 0, and how many there will be. Runs in the calling
    thread; generations of other threads take turns with it. Raises ValueError for more than `MOST_ANSWERS` answers, no
    prompt or an empty one, and what `Llamafu.complete` raises; unknown names and scales out of range before the first
    answer.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) and prompt for prompt in prompts):
        message = f"prompts={prompts!r} is not a list of one prompt or more, none of them empty"
        raise ValueError(message)
    known = [_checked(llm, mix) for mix in mixes]
    distinct: dict[frozenset[tuple[str, float]], dict[str, float]] = {frozenset(): {}}
    for mix in known:
        distinct.setdefault(frozenset(mix.items()), mix)
    kept = list(distinct.values())
    check_size(len(prompts), len(kept))
    runner = _Runner(llm, {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}, chat=chat)
    answers: list[Answer] = []
    places = []
    for prompt in prompts:
        for mix in kept:
            if watch is not None:
                watch(len(answers), len(prompts) * len(kept))
            if not mix:
                runner.take(prompt)
            answers.append(runner.answer(mix))
        places.append(runner.places)
    swept = {name for mix in kept for name in mix}
    adapters = [SweptAdapter(a.name, a.digest, a.path.name) for a in llm.lora_adapters if a.name in swept]
    return Sweep(
        model=llm.path.name,
        library=_library(llm),
        adapters=tuple(adapters),
        chat=chat,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        prompts=tuple(prompts),
        mixes=tuple(kept),
        places=tuple(places),
        answers=tuple(answers),
    )


class _Runner:
    """Answers one prompt after the other; the base's answer comes first and is what the mixes are made to say."""

    def __init__(self, llm: Llamafu, options: OptionArguments, *, chat: bool) -> None:
        self._llm = llm
        self._options = options
        self._chat = chat

    def take(self, prompt: str) -> None:
        """Make `prompt` the one to answer, and find what the base says."""
        llm = self._llm
        self._prompt = prompt
        self._tokens = llm.tokenize_chat(_message(prompt)) if self._chat else llm.tokenize(prompt)
        self._base = self._complete({})
        self._said = self._base.tokens[:-1]  # nothing is asked for after the last one
        self._logits = llm.next_logits(self._tokens, self._said, lora={})
        model = llm._instance.model  # noqa: SLF001 - a token's own text, which has its leading space
        self.places = tuple(
            model.token_bytes(token, special=True).decode("utf-8", "replace") for token in self._base.tokens
        ) or ("",)

    def answer(self, mix: dict[str, float]) -> Answer:
        """Answer the prompt under `mix`."""
        completion = self._complete(mix) if mix else self._base
        logits = self._llm.next_logits(self._tokens, self._said, lora=_scales(mix)) if mix else self._logits
        kls = divergences(self._logits, logits)
        later, seconds = completion.usage.completion_tokens - 1, completion.timings.completion
        return Answer(
            prompt=self._prompt,
            mix=mix,
            text=completion.text,
            tokens=completion.tokens,
            finish_reason=completion.finish_reason,
            kl=kls[0],
            mean_kl=sum(kls) / len(kls),
            kls=kls,
            tokens_per_second=later / seconds if later > 0 and seconds > 0 else None,
        )

    def _complete(self, mix: dict[str, float]) -> Completion:
        options: OptionArguments = {**self._options, "lora": _scales(mix)}
        if self._chat:
            return self._llm.chat(_message(self._prompt), **options)
        return self._llm.complete(self._prompt, **options)


def _message(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _library(llm: Llamafu) -> str:
    """What the libllama in use says of itself, or where older builds say nothing, its file's name."""
    library = llm._instance.model.library  # noqa: SLF001 - only read
    return f"libllama {library.version}" if library.version else library.path.name


def _scales(mix: _Mix) -> LoraScales:
    return cast("LoraScales", mix)  # a Mapping is invariant in its keys


def _checked(llm: Llamafu, mix: _Mix) -> dict[str, float]:
    """The mix by first names, with scales that a call would take."""
    scales = llm._lora_set(_scales(mix)).first  # noqa: SLF001 - the same checks as a call's
    return {adapter.name: scale for adapter, scale in scales.items()}
