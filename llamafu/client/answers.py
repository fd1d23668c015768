"""Types of a server's answers, and their readers. Fields that the types lack are in `Answer.raw`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llamafu._util.arguments import finite_number
from llamafu.generation.completion import AppliedLora, Usage
from llamafu.service.fields import Fields


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a chat, or in a stream the part of it that a chunk adds. `content` is empty where a tool is called.

    `reasoning` is what the model wrote down before its answer, where the server tells it.
    """

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `n` answers, or in a stream the part of it that a chunk adds.

    `finish_reason` is None in every chunk but the last. `message` is None for completions. `logprobs` is as the server
    sent it.
    """

    index: int
    text: str
    finish_reason: str | None
    message: Message | None
    logprobs: dict[str, Any] | None = field(default=None, hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, or in a stream one chunk of it.

    `lora` holds the adapters that took part. Where the server does not send them, `usage` is None and `lora` empty; in a
    stream both come with the last chunk, which may have no choice.
    """

    id: str
    model: str
    created: int
    choices: tuple[Choice, ...]
    usage: Usage | None
    lora: tuple[AppliedLora, ...]
    raw: dict[str, Any] = field(hash=False, repr=False)

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text if self.choices else ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model, or an adapter whose name the option `model` takes."""

    id: str
    object: str
    created: int
    owned_by: str


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix of adapters on Llamafu's server: its name, when it was last written, in Unix seconds, and scales by adapter."""

    id: str
    created: int
    lora: dict[str, float] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Health:
    """A server's health. `issues` are its problems, as texts."""

    status: str
    issues: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """True if the server takes requests."""
        return self.status in {"healthy", "ok"}

    def __bool__(self) -> bool:
        return self.healthy


def read_answer(data: Any) -> Answer:
    """Read a completion or a chat completion, or a chunk of one."""
    fields = Fields(data)
    choices = tuple(_choice(item, f"choices[{index}]", fields.problems) for index, item in enumerate(fields.items("choices")))
    answer = Answer(
        id=fields.text("id", "", empty=True),
        # TabbyAPI's completion chunks have model_name instead
        model=fields.text("model" if fields.has("model") else "model_name", "", empty=True),
        created=int(fields.number("created", 0)),
        choices=choices,
        usage=_usage(fields.take("usage"), fields.problems) if fields.has("usage") else None,
        lora=tuple(_applied(item, fields.problems) for item in fields.items("lora")) if fields.has("lora") else (),
        raw=data if isinstance(data, dict) else {},
    )
    fields.finish()
    return answer


def read_models(data: Any) -> tuple[ModelCard, ...]:
    """Read a list of models."""
    fields = Fields(data)
    cards = []
    for index, item in enumerate(fields.items("data")):
        card = Fields(item, f"data[{index}]", fields.problems)
        cards.append(
            ModelCard(
                id=card.text("id"),
                object=card.text("object", "model"),
                created=int(card.number("created", 0)),
                owned_by=card.text("owned_by", "", empty=True),
            )
        )
    fields.finish()
    return tuple(cards)


def read_mixes(data: Any) -> tuple[Mix, ...]:
    """Read a list of mixes."""
    fields = Fields(data)
    items = enumerate(fields.items("data"))
    mixes = tuple(_mix(Fields(item, f"data[{index}]", fields.problems)) for index, item in items)
    fields.finish()
    return mixes


def read_mix(data: Any) -> Mix:
    """Read one mix."""
    fields = Fields(data)
    mix = _mix(fields)
    fields.finish()
    return mix


def read_health(data: Any) -> Health:
    """Read a health report; TabbyAPI's issues have a time and a description."""
    fields = Fields(data)
    issues = fields.items("issues") if fields.has("issues") else []
    texts = (item.get("description", item) if isinstance(item, dict) else item for item in issues)
    health = Health(fields.text("status"), tuple(map(str, texts)))
    fields.finish()
    return health


def read_tokens(data: Any) -> tuple[int, ...]:
    """Read token ids."""
    fields = Fields(data)
    tokens = fields.items("tokens")
    if any(isinstance(token, bool) or not isinstance(token, int) for token in tokens):
        fields.complain("tokens", "holds what is not a whole number")
    fields.finish()
    return tuple(token for token in tokens if isinstance(token, int))


def read_text(data: Any) -> str:
    """Read the text of tokens."""
    return _single(data, "text")


def read_permission(data: Any) -> str:
    """Read the rights of a key: "admin" or "api"."""
    return _single(data, "permission")


def _single(data: Any, name: str) -> str:
    fields = Fields(data)
    text = fields.text(name, empty=True)
    fields.finish()
    return text


def _mix(fields: Fields) -> Mix:
    given = fields.take("lora")
    scales = Fields(given, fields.path("lora"), fields.problems)
    names = list(given) if isinstance(given, dict) else []
    return Mix(fields.text("id"), int(fields.number("created", 0)), {name: scales.number(name) for name in names})


def _choice(data: Any, where: str, problems: list[str]) -> Choice:
    fields = Fields(data, where, problems)
    message = None
    for name in ("message", "delta"):
        if fields.has(name):
            message = _message(fields.take(name), fields.path(name), problems)
    logprobs = fields.take("logprobs")
    return Choice(
        index=fields.whole("index", 0),
        text=fields.text("text", "", empty=True) if message is None else message.content,
        finish_reason=fields.text("finish_reason") if fields.has("finish_reason") else None,
        message=message,
        logprobs=logprobs if isinstance(logprobs, dict) else None,
    )


def _message(data: Any, where: str, problems: list[str]) -> Message:
    fields = Fields(data, where, problems)
    calls = fields.items("tool_calls") if fields.has("tool_calls") else []
    return Message(
        role=fields.text("role", "assistant"),
        content=fields.text("content", "", empty=True),
        tool_calls=tuple(call for call in calls if isinstance(call, dict)),
        reasoning=fields.text("reasoning_content", "", empty=True),
    )


def _usage(data: Any, problems: list[str]) -> Usage:
    fields = Fields(data, "usage", problems)
    details = fields.take("prompt_tokens_details")
    cached = finite_number(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(fields.whole("prompt_tokens", 0), fields.whole("completion_tokens", 0), int(cached or 0))


def _applied(data: Any, problems: list[str]) -> AppliedLora:
    fields = Fields(data, "lora", problems)
    scale = fields.number("scale")
    return AppliedLora(fields.text("name"), fields.text("digest", "", empty=True), scale, fields.number("final_scale", scale))
