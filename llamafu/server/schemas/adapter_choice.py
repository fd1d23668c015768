"""Which adapters a request runs with."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, RootModel

from llamafu._util.json_values import kind_of, shown
from llamafu._util.suggestions import did_you_mean
from llamafu.hub.local import is_reference
from llamafu.server.schemas.base import RequestBody, SmallBody
from llamafu.server.schemas.field_types import HUB_REFUSED, AdapterName, JsonSchemaOf, NumberId, Scale
from llamafu.server.schemas.reading import validated
from llamafu.service.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence, Sized


MOST_ADAPTERS = 1000
"""Adapters that one `lora` may name: each entry is checked in one call, which every stream waits for."""

_MOST_COMPARED = 100
"""Names with which an unknown one is compared, to say which was meant."""


class AdapterScale(SmallBody):
    """One adapter, by name or by number, and its scale."""

    tolerant: ClassVar[bool] = False
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["id"]}, {"required": ["name"]}]})
    scale: Scale = 1.0
    id: NumberId | None = None
    name: AdapterName | None = None


class NumberedScales(RootModel[list[AdapterScale]], RequestBody):
    """Scales as llama-server's routes have them: a list."""

    root_name: ClassVar[str] = "lora"

    @classmethod
    def form_problem(cls, data: object) -> str | None:
        """Return what is wrong with anything but a list."""
        if not isinstance(data, list):
            return "the body is not a list; give [{'id': 0, 'scale': 0.5}]"
        return _count_problem(data)

    def contradictions(self) -> list[str]:
        """Return problems of entries that name no adapter or name it twice over."""
        found = []
        for index, entry in enumerate(self.root):
            if entry.id is not None and entry.name is not None:
                found.append(f"lora[{index}].id is given beside name; give one of them")
            if entry.id is None and entry.name is None:
                found.append(f"lora[{index}].name is missing; give a string that is not empty")
        return found

    def by_name(self, name_of: Callable[[int], str | None]) -> dict[str, float]:
        """Return {name: scale}; `name_of` says whose number an id is.

        Raises `NotFoundError` for a number that is nobody's, `InvalidRequestError` for an adapter that is named twice.
        """
        names = []
        for index, entry in enumerate(self.root):
            name = entry.name if entry.id is None else name_of(entry.id)
            if name is None:
                message = f"no such adapter: id {entry.id} (lora[{index}])"
                raise NotFoundError(message)
            names.append(name)
        if problems := [f"lora names {name!r} twice; name each adapter once" for name, n in Counter(names).items() if n > 1]:
            raise InvalidRequestError("; ".join(problems), problems=tuple(problems))
        return {name: entry.scale for name, entry in zip(names, self.root, strict=True)}


class ScalesByName(RootModel[dict[str, Scale]], RequestBody):
    """Scales as an object {name: scale}."""

    root_name: ClassVar[str] = "lora"


Scales = Annotated[Any, JsonSchemaOf(ScalesByName | NumberedScales)]
"""Adapters with scales, to be read like a `LoraChoice` that has to be there."""
LoraChoice = Annotated[Any, JsonSchemaOf(ScalesByName | NumberedScales | None)]
"""A request's `lora` as it came: `resolve_adapters` reads it, who knows the scale range and the adapters' numbers."""


def resolve_adapters(
    lora: object,
    model: str | None,
    *,
    base: str,
    names: Collection[str],
    name_of: Callable[[int], str | None],
    scale_range: tuple[float, float],
    aliases: Collection[str] = (),
    waiting: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, float] | None:
    """Return {name: scale} of the adapters and mixes that a request asks for.

    An empty dict is the base model, None the active set.

    Args:
        lora: a list of `{"name" or "id", "scale"}`, or an object {name: scale}; it beats `model`. None if it was not given.
        model: a name of an adapter or a mix is that at scale 1.0; `base`, None or "" is the active set.
        base: id of the base model.
        names: every registered adapter and mix.
        name_of: returns the adapter with a number, None for a number that is nobody's.
        scale_range: the least and the greatest scale that is legal.
        aliases: further names of the base model.
        waiting: why mixes that are not among `names` cannot be used now, by name.

    Raises `InvalidRequestError` with every problem, `NotFoundError` for an adapter or a model that does not exist.

    """
    if lora is not None:
        scales = _read_scales(lora, name_of, scale_range)
        if unknown := [name for name in scales if name not in names]:
            _refuse_hub("lora", unknown)
            reasons = "".join(f"; the mix {name!r} cannot be used: {waiting[name]}" for name in unknown if name in waiting)
            message = f"no such adapter: {', '.join(map(repr, unknown))}{_meant(unknown, names)}{reasons}"
            raise NotFoundError(message)
        return scales
    if not model or model == base or model in aliases:
        return None
    if model in names:
        return {model: 1.0}
    _refuse_hub("model", [model])
    own = " or ".join(map(repr, [base, *aliases]))
    message = (
        f"no such model: {model!r}{_meant([model], names)}; it may be {own}, or an adapter or a mix (GET /v1/models lists them)"
    )
    if model in waiting:
        message = f"the mix {model!r} cannot be used: {waiting[model]}"
    raise NotFoundError(message)


def _refuse_hub(field: str, names: Sequence[str]) -> None:
    if (found := next(filter(is_reference, names), None)) is not None:
        message = f"{field} names {shown(found)}; {HUB_REFUSED}"
        raise InvalidRequestError(message)


def _meant(unknown: Sequence[str], names: Collection[str]) -> str:
    """Return the name that was meant by the first unknown one; comparing takes time that every stream waits for."""
    return did_you_mean(unknown[0], names) if len(names) <= _MOST_COMPARED else ""


def _read_scales(lora: object, name_of: Callable[[int], str | None], scale_range: tuple[float, float]) -> dict[str, float]:
    """Read either form of `lora`."""
    if isinstance(lora, dict | list) and (problem := _count_problem(lora)) is not None:
        raise InvalidRequestError(problem)
    if isinstance(lora, dict):
        return validated(ScalesByName, lora, scale_range).root
    if isinstance(lora, list):
        return validated(NumberedScales, lora, scale_range).by_name(name_of)
    message = f"lora is {kind_of(lora)}; give a list of objects with name and scale, or an object of scales by name"
    raise InvalidRequestError(message)


def _count_problem(lora: Sized) -> str | None:
    """Return what is wrong with a `lora` of too many entries."""
    if len(lora) <= MOST_ADAPTERS:
        return None
    return f"lora names {len(lora):,} adapters, of at most {MOST_ADAPTERS:,}; name each adapter once"
