"""The documentation, executed: every code block of README.md and docs/, and every table that repeats what the code says.

A page's ```python blocks run in order in one namespace, in a folder that holds the files that the pages name. What a
block prints is the ```text block right after it, to the letter; without one it prints nothing. In a ```console block
a `llamafu` command is run, unless it takes minutes: its output is what follows (`...` stands for anything), its
status 0, or N after `# exit status N`. `curl` is run too. Where a page speaks to a server, one runs over the same files.
Of other commands it is checked that what they name exists. A block that imports a package of the extra `peers` is left
out where that is not installed; `tests/peers/` runs its page again.
"""

import re
import textwrap

import pytest
from helpers import doc_pages
from helpers.doc_pages import (
    FENCE,
    ROOT,
    blocks,
    named,
    project,
    run_page,
    served,
    table,
)
from helpers.model_folders import MODELS

from llamafu import errors
from llamafu.adapters.merge.methods import METHODS
from llamafu.adapters.peft.architectures import ARCHITECTURES
from llamafu.adapters.peft.config_fields import HARMLESS, REFUSED
from llamafu.adapters.peft.hf_config import MODEL_TYPES
from llamafu.adapters.peft.module_factors import FOREIGN
from llamafu.cli.main import COMMANDS, main
from llamafu.errors import ErrorCode, LlamafuError
from llamafu.generation.chat_options import CHAT_OPTION_SPECS
from llamafu.generation.options import OPTION_SPECS
from llamafu.generation.tools.answer_format import AnswerFormat, AnswerParser
from llamafu.generation.tools.family import FAMILIES
from llamafu.generation.tools.tool import callable_tools

desk = doc_pages.desk  # a fixture

DOCS = sorted((ROOT / "docs").rglob("*.md"))
EVERY_PAGE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, ROOT / "cdefs" / "README.md"]


WITH_CODE = [page for page in EVERY_PAGE if blocks(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_page_runs(page, desk):
    with served(page, desk) as address:
        run_page(page, address)


def test_readme_example_is_ten_lines_and_speaks():
    """The promise of the first page: ten lines, the base, a pirate, a shout and a blend."""
    code, output = blocks(ROOT / "README.md")[1:3]
    assert len(code.text.splitlines()) == 10
    base, pirate, shout, blend = output.text.splitlines()
    assert "Arrr" in pirate
    assert "Arrr" not in base
    assert shout.isupper()
    assert blend not in {base, pirate, shout}


# -- tables -------------------------------------------------------------------------------------------------------


def exceptions():
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, LlamafuError)]
    return {kind.__name__: kind for kind in found}


def test_every_code_is_listed():
    rows = table(ROOT / "docs" / "errors.md", "Code")
    raised = {int(code): {kind.__name__ for kind in exceptions().values() if kind.code == code} for code in ErrorCode}
    assert [(int(number), name) for number, name, _, _ in rows] == [(int(code), code.name) for code in ErrorCode]
    for number, _, kinds, meaning in rows:
        assert set(kinds.replace("-", "").split()) == raised[int(number)], number
        assert meaning


def test_every_exception_is_listed():
    rows = {name: (parents, code) for name, parents, code, _ in table(ROOT / "docs" / "errors.md", "Exception")}
    kinds = exceptions()
    assert rows == {name: (", ".join(base.__name__ for base in kind.__bases__), kind.code.name) for name, kind in kinds.items()}


def test_every_option_is_listed_with_default_limits_and_meaning():
    rows = [[*cells, meaning.partition("; see [")[0]] for *cells, meaning in table(ROOT / "docs" / "generating.md", "Option")]
    assert rows == [[spec.name, repr(spec.default), spec.limits, spec.doc] for spec in OPTION_SPECS]


def test_every_option_of_chats_is_listed_with_default_and_meaning():
    rows = table(ROOT / "docs" / "generating.md", "Option of chats")
    assert rows == [[spec.name, repr(spec.default), spec.doc] for spec in CHAT_OPTION_SPECS]


def test_every_family_of_calls_is_listed_with_a_call():
    """Each call of the table is one to the reader of its family."""
    text = (ROOT / "docs" / "generating.md").read_text("utf-8")
    rows = re.findall(
        r"^\| ([^|]+) \| `+ ?(.*?)(?: ``)?`? \|$", text.partition("| Family |")[2].partition("\n\n")[0], re.MULTILINE
    )
    assert [name for name, _ in rows] == [family.name for family in FAMILIES]
    for (_, call), family in zip(rows, FAMILIES, strict=True):
        parser = AnswerParser(AnswerFormat(form=family.form, tools=callable_tools([{"name": "f"}])))
        parser.feed(call.replace("\\|", "|").replace("\\n", "\n"))
        parser.finish()
        assert [called.name for called in parser.tool_calls] == ["f"], family.name


def test_every_extra_is_listed_and_all_has_what_users_may_want():
    extras = project()["project"]["optional-dependencies"]
    listed = [name for name, _ in table(ROOT / "docs" / "getting-started.md", "Extra")]
    assert sorted(listed) == sorted(extras)
    assert extras["all"] == [f"llamafu[{','.join(listed[: listed.index('all')])}]"]
    assert {"prebuilt", "fast", "server", "client", "plot", "hub", "media"} <= set(listed[: listed.index("all")])


def test_what_the_readme_counts():
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"of {len(FAMILIES)} model families" in text
    assert f"({len(METHODS)} methods)" in text


def test_every_command_that_prints_json_is_listed(capsys):
    """Of those that have verbs of their own, the verbs."""
    verbs = [[name] for name in COMMANDS if name not in {"adapters", "lib"}]
    verbs += [["adapters", "list"], ["adapters", "rm"], ["lib", "list"], ["lib", "install"], ["lib", "build"]]
    found = set()
    for verb in verbs:
        main([*verb, "--help"])
        found |= {" ".join(verb)} if "--json" in capsys.readouterr().out else set()
    text = " ".join((ROOT / "docs" / "getting-started.md").read_text("utf-8").split())
    listed = re.search(r"`--help` and `--debug`; (.*?) take `--json`", text)[1]
    assert set(re.findall(r"`([^`]+)`", listed)) == found


def members(family, struct):
    text = (ROOT / "cdefs" / family / "llama.h").read_text("utf-8")
    body = re.search(rf"^struct {struct} \{{(.*)\}}\s*;$", text, re.MULTILINE)[1]
    return [re.search(r"(\w+)\s*$", member)[1] for member in body.split(";") if member.strip()]


def test_layouts_table_follows_from_the_declarations():
    """Each row names what its layout adds to and drops from the one before, in either struct."""
    rows = table(ROOT / "cdefs" / "README.md", "Layout")
    families = sorted(path.parent.name for path in ROOT.glob("cdefs/*/llama.h"))
    assert [row[0] for row in rows] == families
    before = {}
    for family, *cells, _seen in rows:
        for struct, cell in zip(("llama_model_params", "llama_context_params"), cells, strict=True):
            now = members(family, struct)
            old = before.get(struct, now)
            wanted = [f"+ {name}" for name in now if name not in old] + [f"- {name}" for name in old if name not in now]
            assert ([] if cell == "" else cell.split(", ")) == wanted, (family, struct)
            kept = [name for name in now if name in old]
            assert kept == [name for name in old if name in now], "a member moved, which the table cannot say"
            before[struct] = now


def test_builds_have_the_layout_that_the_declarations_table_says():
    seen = {row[0]: row[3] for row in table(ROOT / "cdefs" / "README.md", "Layout")}
    listed = table(ROOT / "docs" / "libraries.md", "Build")
    assert len(listed) >= 8
    for build, layout, *_ in listed:
        assert build in seen[layout], build


def test_architectures_are_those_of_the_converter():
    """Each row names the linear layers that are tested for it, and what the converter's table says it does to them."""
    rows = table(ROOT / "docs" / "converting.md", "Architecture")
    assert [row[0] for row in rows] == list(ARCHITECTURES)
    for name, _, layers, differs in rows:
        tested = [module for architecture, modules in MODELS.values() if architecture == name for module in modules]
        assert layers.split(", ") == list(dict.fromkeys(module.rpartition(".")[2] for module in tested)), name
        assert ("reordered" in differs) == ARCHITECTURES[name].interleaved_rope, name
        assert ("stacked" in differs) == ARCHITECTURES[name].experts, name


def test_refusals_are_those_of_the_code():
    page = ROOT / "docs" / "converting.md"
    for head, known in (("Field", REFUSED), ("Tensor", FOREIGN)):
        rows = {name: f"{what}; {mend}" for name, what, mend in table(page, head)}
        assert rows == known
        assert list(rows) == list(known)
    text = page.read_text("utf-8")
    assert f"not looked at: {', '.join(f'`{field}`' for field in sorted(HARMLESS))}." in text
    assert ", ".join(list(MODEL_TYPES)[:-1]) + f" or {list(MODEL_TYPES)[-1]}." in text.replace("\n", " ")


def test_layers_are_those_of_the_linter():
    contract = project()["tool"]["importlinter"]["contracts"][0]
    rows = table(ROOT / "CONTRIBUTING.md", "Package")
    assert [row[0] for row in rows] == [re.sub(" [:|] ", ", ", layer) for layer in contract["layers"]]


# -- prose --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", EVERY_PAGE, ids=named)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        assert not path.startswith(("/", "http:")), target
        if path.startswith("https:"):
            continue
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", goal.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}, (
                target
            )


def test_index_leads_to_every_page():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    missing = [named(page) for page in DOCS if page.name != "index.md" and f"({page.relative_to(ROOT / 'docs')})" not in index]
    assert not missing


def test_a_wrong_page_is_caught(tmp_path, desk):
    """The harness itself: a wrong output, an unshown one, a failing command and an unknown language are all seen."""
    page = tmp_path / "page.md"
    for text in (
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nprint(1)\n```\n",
        "```text\n1\n```\n",
        "```console\n$ llamafu check alora.gguf -m model.gguf\n```\n",
        "```json\n{}\n```\n",
    ):
        page.write_text(textwrap.dedent(text), encoding="utf-8")
        with pytest.raises(AssertionError):
            test_page_runs(page, desk)
    page.write_text("```python\nprint(1)\n```\n\n```text\n1\n```\n", encoding="utf-8")
    test_page_runs(page, desk)
