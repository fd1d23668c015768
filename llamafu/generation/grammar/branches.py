"""The branches of anyOf and oneOf: those that list values are one list, and what tells the others apart."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from llamafu.generation.grammar.keywords import check, is_annotation, join, refuse
from llamafu.generation.grammar.schema import MOST_STEPS, canonical

if TYPE_CHECKING:
    from llamafu.generation.grammar.schema import Schema

Tags = dict[str | None, frozenset[str]]


def as_list(flat: Schema, path: str) -> Schema:
    """Return a flat schema with `enum` for an anyOf or oneOf of nothing but listed values, each in one branch.

    OpenAPI 3.1 writes enums so, to give every value a title.
    """
    keyword = "anyOf" if "anyOf" in flat else "oneOf"
    values: dict[str, Any] = {}
    if "enum" in flat or {"anyOf", "oneOf"} <= flat.keys() or keyword not in flat:
        return flat
    for i, branch in enumerate(flat[keyword]):
        kinds = [key for key in branch if not is_annotation(key)] if isinstance(branch, dict) else []
        if kinds not in (["const"], ["enum"]):
            return flat
        check(branch, join(path, keyword, i))
        more = {canonical(value): value for value in ([branch["const"]] if kinds == ["const"] else branch["enum"])}
        if keyword == "oneOf" and not values.keys().isdisjoint(more):
            return flat
        for key, value in more.items():
            values.setdefault(key, value)
    return {**{key: value for key, value in flat.items() if key != keyword}, "enum": list(values.values())}


def tags(flat: Schema) -> Tags:
    """Return what tells branches apart: required properties of an object that are one of listed values, and these.

    None is the key of the values that the branch itself lists.
    """
    if "enum" in flat:
        return {None: frozenset(map(canonical, flat["enum"]))}
    if flat.get("type") != "object":
        return {}
    found: Tags = {}
    for key in flat.get("required", ()):
        schema = flat.get("properties", {}).get(key)
        if isinstance(schema, dict) and schema.keys() & {"const", "enum"}:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            found[key] = frozenset(map(canonical, values))
    return found


def unsure_pairs(marks: list[Tags]) -> list[tuple[int, int]]:
    """Return the ordered pairs of branches that their tags do not tell apart.

    Branches that differ in one property are seen at once, where pairs of them would be many.
    """
    apart: set[int] = set()
    for key, _ in Counter(key for mark in marks for key in mark).most_common():
        with_key = [i for i, mark in enumerate(marks) if key in mark]
        values = [marks[i][key] for i in with_key]
        if len(frozenset().union(*values)) == sum(map(len, values)):
            apart = set(with_key)
            break
    others = [i for i in range(len(marks)) if i not in apart]
    if len(others) * len(marks) > MOST_STEPS:
        refuse("#", f"{len(marks):,} branches of oneOf are too many to compare; use anyOf, or tell them apart by a const")
    pairs = {pair for i in others for j in range(len(marks)) if i != j for pair in ((i, j), (j, i))}
    return sorted((i, j) for i, j in pairs if not any(marks[j].get(key, own).isdisjoint(own) for key, own in marks[i].items()))
