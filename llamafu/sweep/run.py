"""Runs a sweep: answers every prompt under every mix and measures the divergence from the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from llamafu._util.arguments import check_whole
from llamafu.sweep.divergence import divergences
from llamafu.sweep.mixes import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llamafu.generation.completion import Completion, FinishReason
    from llamafu.generation.options import OptionArguments
    from llamafu.lora.handles import LoraAdapter
    from llamafu.lora.scales import LoraScales
    from llamafu.model.llamafu import Llamafu

    _Mix = Mapping[str, float] | Mapping[LoraAdapter, float] | Mapping[LoraAdapter | str, float]


@dataclass(frozen=True, slots=True)
class SweptAdapter:
    """An adapter of a sweep: its name, the SHA-256 of its content, and the name of its file or folder."""

    name: str
    digest: str
    file: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt answered under one mix, {adapter name: scale}; {} is the base.

    `kls` has KL(base || mix) in nats at each token of the base's answer: both models get the prompt and the tokens of that
    answer so far. `kl` is the first of them, `mean_kl` their mean. Where the base's answer is empty there is one value, for
    the token after the prompt. `tokens_per_second` excludes the prompt and the first token, and is None without a second one.
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
    """Result of a sweep. `answers` are ordered by prompt, and within a prompt as `mixes`, of which the base is the first.

    `places` has, for each prompt, the text of every token of the base's answer, to which the values of `kls` belong.
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
        """Return the answers to the prompt of this index, in the order of `mixes`."""
        count = len(self.mixes)
        return self.answers[prompt * count : (prompt + 1) * count]

    def mean_kl(self, mix: int) -> float:
        """Return the mean KL of the mix of this index, in nats, over all tokens of all prompts."""
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
    """Answer every prompt with the base and under every mix, and measure the KL divergence of each mix from the base.

    It runs in the calling thread; generations of other threads alternate with it. The active set is neither used nor
    changed.

    llm: the model, with the adapters of all mixes loaded.
    prompts: at least one, none empty.
    mixes: each is {adapter or name: scale}; equal ones are answered once.
    chat: True asks each prompt as a user's message, False continues it as plain text.
    max_tokens: most new tokens of each answer, at least 1.
    temperature: as in `Options`; 0 always takes the likeliest token.
    seed: of every answer; without effect at temperature 0.
    watch: called before each answer with its index, from 0, and the number of answers.

    Raises ValueError for more than `MOST_ANSWERS` answers and for illegal prompts, and what `Llamafu.complete` raises.
    Unknown names and scales out of range are errors before the first answer.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) and prompt for prompt in prompts):
        message = f"prompts={prompts!r} is not a list of one prompt or more, none of them empty"
        raise ValueError(message)
    check_whole("max_tokens", max_tokens, low=1)
    kept = _distinct([_checked(llm, mix) for mix in mixes])
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
    """Answers one prompt at a time: first with the base, then with mixes, which are measured on the base's answer."""

    def __init__(self, llm: Llamafu, options: OptionArguments, *, chat: bool) -> None:
        self._llm = llm
        self._options = options
        self._chat = chat

    def take(self, prompt: str) -> None:
        """Set the prompt, and generate the base's answer and its logits."""
        llm = self._llm
        self._prompt = prompt
        self._tokens = llm.tokenize_chat(_message(prompt)) if self._chat else llm.tokenize(prompt)
        self._base = self._complete({})
        self._base_tokens = self._base.tokens[:-1]  # no logits are needed after the last token
        self._logits = llm.next_logits(self._tokens, self._base_tokens, lora={})
        model = llm._session.instance.model  # noqa: SLF001 - the text of a single token with its leading space
        self.places = tuple(
            model.token_bytes(token, special=True).decode("utf-8", "replace") for token in self._base.tokens
        ) or ("",)

    def answer(self, mix: dict[str, float]) -> Answer:
        """Answer the prompt under `mix`."""
        completion = self._complete(mix) if mix else self._base
        logits = self._llm.next_logits(self._tokens, self._base_tokens, lora=_scales(mix)) if mix else self._logits
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


def _distinct(mixes: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return the base and each further mix once."""
    found: dict[frozenset[tuple[str, float]], dict[str, float]] = {frozenset(): {}}
    for mix in mixes:
        found.setdefault(frozenset(mix.items()), mix)
    return list(found.values())


def _message(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _library(llm: Llamafu) -> str:
    """Return the version of the libllama in use, or of an older build without one its file's name."""
    library = llm._session.instance.model.library  # noqa: SLF001 - only read
    return f"libllama {library.version}" if library.version else library.path.name


def _scales(mix: _Mix) -> LoraScales:
    return cast("LoraScales", mix)  # a Mapping is invariant in its keys


def _checked(llm: Llamafu, mix: _Mix) -> dict[str, float]:
    """Return the mix as {name: scale}, checked as a call checks it."""
    lora = llm._adapters.lora_set(_scales(mix))  # noqa: SLF001 - the same checks as a call's
    return {use.name: scale for use, scale in zip(lora.uses, lora.first, strict=True)}
