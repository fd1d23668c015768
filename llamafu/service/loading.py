"""Requests to load a set of adapters, and their answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llamafu._util.arguments import finite_number
from llamafu._util.json_values import shown
from llamafu.service.errors import InvalidRequestError
from llamafu.service.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class LoraLoadInfo:
    """One adapter of a load request."""

    name: str
    scaling: float = 1.0
    """Factor of the adapter's change to the model, within the engine's `scale_range`; 0 is no change."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, also with a scaling of 0."""
        return {"name": self.name, "scaling": self.scaling}

    @classmethod
    def from_json(cls, data: object, where: str = "", problems: list[str] | None = None) -> Self:
        """Read it. Raises `InvalidRequestError` with every problem; an unknown field is one."""
        fields = Fields(data, where, problems)
        info = cls(name=fields.text("name"), scaling=fields.number("scaling", 1.0))
        fields.refuse_others()
        if problems is None:
            fields.finish()
        return info


@dataclass(frozen=True, slots=True)
class LoraLoadRequest:
    """The complete set that is to become active.

    `skip_queue`: True applies the new set to queued requests too, which otherwise keep the set of their arrival. Running
    requests always keep theirs.
    """

    loras: tuple[LoraLoadInfo, ...]
    skip_queue: bool = False

    def __post_init__(self) -> None:
        """Make a tuple of any sequence that was given as `loras`."""
        object.__setattr__(self, "loras", tuple(self.loras))

    @classmethod
    def of(cls, scales: Mapping[str, float], *, skip_queue: bool = False) -> Self:
        """Return the request for `{name: scale}`."""
        return cls(tuple(LoraLoadInfo(name, scale) for name, scale in scales.items()), skip_queue)

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON."""
        return {"loras": [info.to_json() for info in self.loras], "skip_queue": self.skip_queue}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read and check a request. Raises `InvalidRequestError` with every problem; an unknown field is one."""
        fields = Fields(data)
        loras = tuple(
            LoraLoadInfo.from_json(item, f"loras[{index}]", fields.problems) for index, item in enumerate(fields.items("loras"))
        )
        request = cls(loras, fields.flag("skip_queue", default=False))
        fields.refuse_others()
        if not fields.problems:
            fields.problems.extend(request.problems())
        fields.finish()
        return request

    def problems(self) -> tuple[str, ...]:
        """Describe what no service takes: no adapter, a repeated or an empty name, a scaling that is not a finite number."""
        if not self.loras:
            return ("loras is empty; name at least one adapter, or unload to have none",)
        found = []
        for index, info in enumerate(self.loras):
            if not isinstance(info.name, str) or not info.name:
                found.append(f"loras[{index}].name is {shown(info.name)}; give a string that is not empty")
            if finite_number(info.scaling) is None:
                found.append(f"loras[{index}].scaling is {shown(info.scaling)}; give a finite number")
        for name, times in Counter(info.name for info in self.loras).items():
            if times > 1:
                found.append(f"loras names {name!r} {times} times; name each adapter once")
        return tuple(found)

    def check(self) -> None:
        """Raise `InvalidRequestError` with all of `problems`, if there is one."""
        if found := self.problems():
            raise InvalidRequestError("; ".join(found), problems=found)


@dataclass(frozen=True, slots=True)
class LoraLoadResponse:
    """Names of the adapters that are active now and of those not found, both in the order of the request."""

    success: tuple[str, ...] = ()
    failure: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON."""
        return {"success": list(self.success), "failure": list(self.failure)}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read an answer; unknown fields, which a later version may add, are ignored. Raises `InvalidRequestError`."""
        fields = Fields(data)
        lists = {}
        for name in ("success", "failure"):
            names = fields.items(name) if fields.has(name) else []
            lists[name] = tuple(item for item in names if isinstance(item, str))
            if len(lists[name]) != len(names):
                fields.complain(name, "holds what is not a string; give names")
        fields.finish()
        return cls(**lists)
