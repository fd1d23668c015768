"""Which adapters a request runs with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.service.errors import InvalidRequestError, NotFoundError
from llamafu.service.fields import Fields, as_number, kind_of, limits, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


def resolve_adapters(
    lora: object,
    model: str | None,
    *,
    base: str,
    names: Collection[str],
    name_of: Callable[[int], str | None],
    scale_range: tuple[float, float],
) -> dict[str, float] | None:
    """Return {name: scale}: empty is the base model, None the active set.

    `lora`, a list of `{"name" or "id", "scale"}` or an object {name: scale}, beats `model`. An adapter's name as `model` is
    that adapter at 1.0; `base`, or no model, is the active set. `name_of` says whose number an id is. Raises
    `InvalidRequestError` with every problem, `NotFoundError` for what does not exist.
    """
    if lora is not None:
        scales = read_scales(lora, name_of, scale_range)
        if unknown := [name for name in scales if name not in names]:
            message = f"no such adapter: {', '.join(map(repr, unknown))}"
            raise NotFoundError(message)
        return scales
    if model is None or model == base:
        return None
    if model in names:
        return {model: 1.0}
    message = f"no such model: {model!r}; it may be {base!r} or an adapter's name (GET /v1/models lists them)"
    raise NotFoundError(message)


def read_scales(lora: object, name_of: Callable[[int], str | None], scale_range: tuple[float, float]) -> dict[str, float]:
    """Read either form of `lora`."""
    problems: list[str] = []
    if isinstance(lora, dict):
        pairs = [(name, _scale(f"lora[{name!r}]", value, scale_range, problems)) for name, value in lora.items()]
    elif isinstance(lora, list):
        pairs = [_entry(f"lora[{index}]", item, name_of, scale_range, problems) for index, item in enumerate(lora)]
    else:
        pairs = []
        problems.append(f"lora is {kind_of(lora)}; give a list of objects with name and scale, or an object of scales by name")
    scales: dict[str, float] = {}
    for name, scale in pairs:
        if name in scales:
            problems.append(f"lora names {name!r} twice; name each adapter once")
        scales[name] = scale
    if problems:
        raise InvalidRequestError("; ".join(problems), problems=tuple(problems))
    return scales


def _entry(
    where: str,
    data: object,
    name_of: Callable[[int], str | None],
    scale_range: tuple[float, float],
    problems: list[str],
) -> tuple[str, float]:
    fields = Fields(data, where, problems)
    scale = _scale(f"{where}.scale", fields.take("scale"), scale_range, problems) if fields.has("scale") else 1.0
    if fields.has("id") and fields.has("name"):
        fields.complain("id", "is given beside name; give one of them")
    if fields.has("id"):
        number = fields.whole("id", low=0)
        name = name_of(number)
        if name is None:
            message = f"no such adapter: id {number} ({where})"
            raise NotFoundError(message)
        fields.take("name")
    else:
        name = fields.text("name")
        fields.take("id")
    fields.refuse_others(["scale"])
    return name, scale


def _scale(where: str, value: object, scale_range: tuple[float, float], problems: list[str]) -> float:
    number = as_number(value)
    low, high = scale_range
    if number is not None and low <= number <= high:
        return number
    problems.append(f"{where} is {shown(value)}; give a finite number{limits(low, high)}")
    return 0.0
