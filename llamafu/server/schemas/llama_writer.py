"""Answers in llama-server's own form, whole and in chunks."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamafu.generation.completion import Piece
from llamafu.generation.line_limits import LineLimits
from llamafu.generation.sampler_order import order_of
from llamafu.server.schemas.openai_writer import lora
from llamafu.server.schemas.option_fields import OPTION_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamafu.engine.request import Request
    from llamafu.generation.completion import AppliedLora, Completion, TokenLogprob
    from llamafu.generation.options import Options
    from llamafu.server.schemas.llama_requests import LlamaBody

_NO_SLOT = -1
"""There are no slots: any request may run beside any other."""
_AT_ONCE = 32
"""Tokens whose probabilities are written at once: in between other threads get their turn."""


@dataclass(slots=True)
class _Progress:
    """What the chunks of one answer have told: how many tokens and log probabilities, and when the first came."""

    tokens: int = 0
    logprobs: int = 0
    first: float = 0.0


@dataclass(slots=True)
class LlamaWriter:
    """Writes the answers to one request, `body`.

    Args:
        model: what the model is called.
        context_length: most tokens of prompt and answer together.
        numbers: numbers of adapters by name.
        prompts: the request of each prompt and the prompt's text, once they are made.

    """

    body: LlamaBody
    model: str
    context_length: int
    numbers: Mapping[str, int]
    prompts: list[tuple[Request, str]] = field(default_factory=list)
    _told: dict[int, _Progress] = field(default_factory=dict)

    def whole(self, completions: Sequence[Completion]) -> str:
        """Return the answer as JSON, a list where there are several; probabilities are written piece by piece."""
        answers = [self._written(index, one) for index, one in enumerate(completions)]
        return answers[0] if len(answers) == 1 else f"[{','.join(answers)}]"

    def first(self, index: int) -> list[dict[str, Any]]:  # noqa: ARG002 - as other protocols' writers
        """Return nothing: text comes at once."""
        return []

    def pieces(self, index: int, piece: str) -> list[dict[str, Any]]:
        """Return the chunk of one piece, with its tokens."""
        told = self._told.setdefault(index, _Progress(first=time.perf_counter()))
        tokens, logprobs = (piece.tokens, piece.logprobs) if isinstance(piece, Piece) else ((), ())
        told.tokens += len(tokens)
        told.logprobs += len(logprobs)
        chunk = self._part(index, piece, tokens, told.tokens)
        if self.body.timings_per_token:
            chunk["timings"] = _speed("predicted", told.tokens, time.perf_counter() - told.first)
        if logprobs:
            chunk["completion_probabilities"] = [_probability(one) for one in logprobs]
        return [chunk]

    def last(self, index: int, completion: Completion) -> list[dict[str, Any]]:
        """Return the chunk that ends an answer, with the tokens that no piece of text has come of."""
        told = self._told.get(index, _Progress())
        chunk = self._end(index, completion, "", completion.tokens[told.tokens :])
        if rest := (completion.logprobs or ())[told.logprobs :]:
            chunk["completion_probabilities"] = [_probability(one) for one in rest]
        return [self._chosen(chunk)]

    def end(self, completions: Sequence[Completion]) -> list[dict[str, Any]]:  # noqa: ARG002 - as other protocols' writers
        """Return nothing: each answer's last chunk has its own numbers."""
        return []

    def _written(self, index: int, completion: Completion) -> str:
        tokens = completion.tokens if self.body.return_tokens else ()
        limits = self._limits(index)
        text = completion.text if limits is None else limits.shortened(completion.text)
        head = _json(self._chosen(self._end(index, completion, text, tokens)))
        found, wanted = completion.logprobs, self.body.response_fields
        if not found or (wanted and "completion_probabilities" not in wanted):
            return head
        starts = range(0, len(found), _AT_ONCE)
        parts = [_json([_probability(one) for one in found[start : start + _AT_ONCE]])[1:-1] for start in starts]
        return f'{head[:-1]}{"," if len(head) > len("{}") else ""}"completion_probabilities":[{",".join(parts)}]}}'

    def _part(self, index: int, text: str, tokens: Sequence[int], count: int) -> dict[str, Any]:
        request, _ = self.prompts[index // self.body.n]
        return {
            "index": index,
            "content": text,
            "tokens": list(tokens),
            "stop": False,
            "id_slot": _NO_SLOT,
            "tokens_predicted": count,
            "tokens_evaluated": len(request.prompt),
        }

    def _end(self, index: int, completion: Completion, text: str, tokens: Sequence[int]) -> dict[str, Any]:
        request, prompt = self.prompts[index // self.body.n]
        used = completion.usage
        is_full = completion.finish_reason == "length" and used.total_tokens >= self.context_length
        limits = self._limits(index)
        is_limited = completion.finish_reason != "stop" or (limits is not None and limits.has_ended_it)
        stopped = "word" if completion.stop_text else "eos"
        settings = generation_settings(request, seed=completion.seed, stream=self.body.stream)
        return {
            **self._part(index, text, tokens, used.completion_tokens),
            "stop": True,
            "model": self.model,
            "generation_settings": {**settings, "lora": [self._numbered(one) for one in completion.lora]},
            "prompt": prompt,
            "has_new_line": "\n" in completion.text,
            "truncated": is_full,
            "stop_type": "limit" if is_limited else stopped,
            "stopping_word": completion.stop_text,
            "tokens_cached": used.cached_tokens,
            "timings": _timings(completion),
            "lora": lora([completion]),
        }

    def _limits(self, index: int) -> LineLimits | None:
        """Return what may have ended an answer by its lines."""
        limits = self.prompts[index // self.body.n][0].stopping
        return limits if isinstance(limits, LineLimits) else None

    def _numbered(self, applied: AppliedLora) -> dict[str, Any]:
        """Return an adapter by its number; one that was taken off the list meanwhile by its name."""
        number = self.numbers.get(applied.name)
        return {**({"name": applied.name} if number is None else {"id": number}), "scale": applied.scale}

    def _chosen(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that `response_fields` names, a path with slashes as it stands; all where it names none."""
        if not self.body.response_fields:
            return answer
        found = {}
        for path in self.body.response_fields:
            value: Any = answer
            for key in path.split("/"):
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                found[path] = value
        return found


def generation_settings(options: Options, *, seed: int | None, stream: bool) -> dict[str, Any]:
    """Return options by name, and by llama-server's names where it has others. None is what does not act."""
    bias = (options.logit_bias or {}).items()
    return {
        **{name: getattr(options, name) for name in OPTION_NAMES},
        "seed": -1 if seed is None else seed,
        "samplers": list(order_of(options.sampler_names)),
        "stop": list(options.stops),
        "logit_bias": [{"token": token, "bias": number} for token, number in bias],
        "grammar": options.grammar or "",
        "n_predict": options.max_tokens,
        "n_probs": options.logprobs or 0,
        "n_keep": 0,
        "n_discard": 0,
        "stream": stream,
    }


def _timings(completion: Completion) -> dict[str, Any]:
    used, took = completion.usage, completion.timings
    return {
        "cache_n": used.cached_tokens,
        **_speed("prompt", used.prompt_tokens - used.cached_tokens, took.prompt),
        **_speed("predicted", used.completion_tokens, took.completion),
    }


def _speed(what: str, count: int, seconds: float) -> dict[str, Any]:
    return {
        f"{what}_n": count,
        f"{what}_ms": 1000 * seconds,
        f"{what}_per_token_ms": 1000 * seconds / count if count else 0.0,
        f"{what}_per_second": count / seconds if seconds else 0.0,
    }


def _probability(one: TokenLogprob) -> dict[str, Any]:
    top = zip(one.top, one.top_bytes, strict=True)
    return {
        **_token(one.token, one.token_bytes, one.logprob),
        "top_logprobs": [_token(token, spelled, logprob) for (token, _, logprob), spelled in top],
    }


def _token(token: int, spelled: bytes, logprob: float) -> dict[str, Any]:
    return {"id": token, "token": spelled.decode("utf-8", "replace"), "bytes": list(spelled), "logprob": logprob}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
