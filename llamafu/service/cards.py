"""Descriptions of adapters as services return them: cards, and lists of cards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from llamafu.service.fields import Fields


@dataclass(frozen=True, slots=True)
class LoraCard:
    """One adapter."""

    id: str
    """Its name."""
    object: str = "lora"
    created: int = 0
    """When the file was last written, in Unix seconds; 0 where that is not known."""
    owned_by: str = "llamafu"
    scaling: float | None = None
    """Its scale in the active set, which may be 0; None where it is not active."""

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON; the card of an inactive adapter has no `scaling`."""
        card = {"id": self.id, "object": self.object, "created": self.created, "owned_by": self.owned_by}
        return card if self.scaling is None else {**card, "scaling": self.scaling}

    @classmethod
    def from_json(cls, data: Any, where: str = "", problems: list[str] | None = None) -> Self:
        """Read a card; unknown fields, which a later version may add, are ignored. Raises `InvalidRequestError`."""
        fields = Fields(data, where, problems)
        card = cls(
            id=fields.text("id"),
            object=fields.text("object", "lora"),
            created=int(fields.number("created", 0)),
            owned_by=fields.text("owned_by", "", empty=True),
            scaling=fields.number("scaling") if fields.has("scaling") else None,
        )
        if problems is None:
            fields.finish()
        return card


@dataclass(frozen=True, slots=True)
class LoraList:
    """Several adapters, in the service's order."""

    object: str = "list"
    data: tuple[LoraCard, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the list as JSON."""
        return {"object": self.object, "data": [card.to_json() for card in self.data]}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read a list; unknown fields, which a later version may add, are ignored. Raises `InvalidRequestError`."""
        fields = Fields(data)
        cards = tuple(
            LoraCard.from_json(item, f"data[{index}]", fields.problems) for index, item in enumerate(fields.items("data"))
        )
        found = cls(object=fields.text("object", "list"), data=cards)
        fields.finish()
        return found
