"""The JSON-Schema-Test-Suite's required tests of draft 2020-12, as the source package of jsonschema carries them."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from helpers.gbnf_matcher import Grammar
from upstream_tree import UpstreamError, source_tree

from llamafu.errors import GrammarError
from llamafu.generation.grammar import schema_to_gbnf

DOCS = Path(__file__).parents[2] / "docs" / "generating.md"
NOT_ENFORCED = "uniqueItems"
"""What decision 7 leaves to the model, and says."""


@pytest.fixture(scope="module")
def suite():
    try:
        folder = source_tree("jsonschema==4.26.0", "json") / "json" / "tests" / "draft2020-12"
    except UpstreamError as error:
        pytest.skip(str(error))
    return [(path.stem, group) for path in sorted(folder.glob("*.json")) for group in json.loads(path.read_text("utf-8"))]


def spellings(value):
    """Yield texts of a value: members in any order, whole numbers without a fraction as well."""
    if isinstance(value, float) and value.is_integer():
        yield from (str(int(value)), json.dumps(value))
    elif isinstance(value, list):
        for parts in itertools.product(*[itertools.islice(spellings(item), 6) for item in value]):
            yield f"[{', '.join(parts)}]"
    elif isinstance(value, dict):
        for keys in itertools.permutations(value):
            for parts in itertools.product(*[itertools.islice(spellings(value[key]), 6) for key in keys]):
                members = [f"{json.dumps(key, ensure_ascii=False)}: {part}" for key, part in zip(keys, parts, strict=True)]
                yield f"{{{', '.join(members)}}}"
    else:
        yield json.dumps(value, ensure_ascii=False)


def is_written(grammar, value):
    return any(grammar.matches(text) for text in itertools.islice(spellings(value), 200))


def test_every_schema_is_enforced_or_refused_by_name(suite):
    """Nothing invalid can be written; and docs tell the counts, of which those of valid values are what can be written."""
    counts, loose, unnamed = Counter(), [], []
    for file, group in suite:
        schema = group["schema"]
        try:
            grammar = Grammar(schema_to_gbnf(schema if isinstance(schema, dict) else json.dumps(schema)))
        except GrammarError as error:
            counts["refused"] += 1
            if not str(error).startswith("JSON schema: #"):
                unnamed.append(f"{file}, {group['description']}: {error}")
            continue
        counts["enforced"] += 1
        for test in group["tests"]:
            written = is_written(grammar, test["data"])
            counts["valid" if test["valid"] else "invalid", written] += 1
            if written and not test["valid"] and file != NOT_ENFORCED:
                loose.append(f"{file}, {group['description']}: {test['description']}")
    assert not loose
    assert not unnamed
    valid, invalid = (counts[kind, True] + counts[kind, False] for kind in ("valid", "invalid"))
    refused, enforced = counts["refused"], counts["enforced"]
    kept, repeats = counts["invalid", False], counts["invalid", True]
    told = (
        f"Of its {refused + enforced} schemas {enforced} are enforced and {refused} are refused by name; "
        f"of the {invalid} invalid values under those that are enforced, {kept} cannot be written, "
        f"and {repeats} repeat items under `uniqueItems`; "
        f"of the {valid} valid ones, {counts['valid', True]} can be written."
    )
    assert told in " ".join(DOCS.read_text("utf-8").split()), told
