"""The documentation, executed: every code block of README.md and docs/, and every table that repeats what the code says.

A page's ```python blocks run in order in one namespace, in a folder that holds the files that the pages name. What a
block prints is the ```text block right after it, to the letter; without one it prints nothing. In a ```console block
a `llamafu` command is run, unless it takes minutes: its output is what follows (`...` stands for anything), its
status 0, or N after `# exit status N`. `curl` is run too. Where a page speaks to a server, one runs over the same files.
Of other commands it is checked that what they name exists. A block that imports a package of the extra `peers` is left
out where that is not installed; `tests/peers/` runs its page again.
"""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from served import served as server_process
from test_architectures import MODELS

from llamafu import errors
from llamafu.adapters.peft.architectures import ARCHITECTURES
from llamafu.adapters.peft.config_fields import HARMLESS, REFUSED
from llamafu.adapters.peft.hf_config import MODEL_TYPES
from llamafu.adapters.peft.module_factors import FOREIGN
from llamafu.cli.main import _parser
from llamafu.errors import ErrorCode, LlamafuError
from llamafu.examples.adapters import example_adapters
from llamafu.examples.model import example_model
from llamafu.generation.options import Options

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
EVERY_PAGE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, ROOT / "cdefs" / "README.md"]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER = "http://localhost:8080"
"""What pages call the server; it is started where a page says so."""
SLOW = {("demo",), ("chat",), ("serve",), ("lib", "install"), ("lib", "build")}
"""Commands that are only parsed: they fetch, compile, talk or serve for long."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, where it starts, and whether only blank lines part it from the last one."""

    language: str
    text: str
    line: int
    follows: bool


def blocks(page):
    text, end, found = page.read_text("utf-8"), 0, []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(match[1].strip(), match[2], line, not text[end : match.start()].strip()))
        end = match.end()
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(found), f"{named(page)}: a fence is indented or open"
    return found


def named(page):
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


WITH_CODE = [page for page in EVERY_PAGE if blocks(page)]


@pytest.fixture
def desk(tmp_path, tiny_dir, monkeypatch):
    """A folder with the files that the pages name."""
    from test_convert import arrays_of  # both files import this one's ROOT
    from test_dora import dora_folder

    try:
        model = example_model()
    except LlamafuError as error:
        pytest.skip(f"the example model cannot be had: {error}")
    (tmp_path / "model.gguf").symlink_to(model)
    for name, path in example_adapters().items():
        shutil.copy(path, tmp_path / f"{name}.gguf")
        shutil.copytree(ROOT / "examples" / "adapters" / name, tmp_path / name)
    shutil.copy(tiny_dir / "tiny.gguf", tmp_path / "tiny.gguf")
    shutil.copy(tiny_dir / "alora.gguf", tmp_path / "alora.gguf")
    dora_folder(tmp_path / "dora", arrays_of(layers=1, modules=["mlp.up_proj"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def served(page, desk):
    """Give the address of a server over the model and the two adapters for a page that speaks to one, itself for any other."""
    if SERVER not in page.read_text("utf-8"):
        yield SERVER
        return
    folder = desk / "adapters"
    folder.mkdir()
    for path in example_adapters().values():
        shutil.copy(path, folder)
    with server_process(desk / "model.gguf", "--adapters", folder) as running:
        assert running.url, running.log
        yield running.url


def run_python(page, block, namespace, address):
    """Execute one block; a failure's traceback shows the page and the line in it."""
    text = block.text.replace(SERVER, address)
    code = compile("\n" * (block.line - 1) + text, str(page), "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)  # noqa: S102 - our own pages
    return printed.getvalue()


def lacks_a_peer(block):
    return "from openai import" in block.text and importlib.util.find_spec("openai") is None


def as_pattern(expected):
    if expected.endswith("\n..."):  # a last line of it alone: any further lines, or none
        expected = expected.removesuffix("\n...") + "..."
    return ".*".join(map(re.escape, expected.split("...")))


def run_console(block, address):
    """Run the commands of one console block, or check what they name."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        command, _, comment = line.partition("#")
        words = shlex.split(command)
        if words[0] == "curl":
            assert_said(["curl", "--silent", "--show-error", *words[1:]], expected, address=address)
            continue
        if words[0] != "llamafu":
            check_command(words)
            continue
        _parser().parse_args(words[1:])
        if any(tuple(words[1 : 1 + len(slow)]) == slow for slow in SLOW):
            continue
        status = re.search(r"exit status (\d+)", comment)
        assert_said([sys.executable, "-m", *words], expected, status=int(status[1]) if status else 0)


def assert_said(command, expected, *, status=0, address=SERVER):
    """Run a command and compare what it says, unless the page does not show it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"}
    command = [word.replace(SERVER, address) for word in command]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=100, check=False)
    assert done.returncode == status, done.stderr
    said = done.stdout + done.stderr
    assert not expected.strip() or re.fullmatch(as_pattern(expected.strip()), said.strip(), re.DOTALL), said


def check_command(words):
    """Check that the job, the script or the extra that a set-up command names is there."""
    if words[0] == "make":
        spec = importlib.util.spec_from_file_location("dev", ROOT / "scripts" / "dev.py")
        dev = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(dev)
        assert {word for word in words[1:] if "=" not in word} <= set(dev.JOBS)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[:2] == ["pip", "install"]:
        extras = re.fullmatch(r"(?:llamafu|\.)\[([\w,]+)\]", words[2])
        assert extras is None or set(extras[1].split(",")) <= set(project()["project"]["optional-dependencies"])
    else:
        assert words[0] in {"git", "cd", "export"}, f"{words}: what should this be checked by?"


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_page_runs(page, desk):
    with served(page, desk) as address:
        run_page(page, address)


def run_page(page, address):
    namespace = {"__name__": "__main__"}
    printed, last = "", None
    for block in blocks(page):
        where = f"{named(page)}:{block.line}"
        if block.language == "text":
            assert block.follows, f"{where}: a text block is what the python block right before it prints"
            assert last == "python", f"{where}: likewise"
            assert printed in {block.text, None}, where
            printed = ""
        else:
            assert not printed, f"{where}: the block before this one printed {printed!r}, which the page does not show"
            if block.language == "python":
                printed = None if lacks_a_peer(block) else run_python(page, block, namespace, address)
            else:
                assert block.language == "console", f"{where}: blocks are python, text or console, so that they can be run"
                run_console(block, address)
        last = block.language
    assert not printed, f"{named(page)}: its last block printed {printed!r}, which the page does not show"


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


def table(page, head):
    """Rows of the table whose first heading is `head`, without code marks."""
    lines = page.read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")])
    return rows


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


def test_every_option_is_listed_with_its_default():
    rows = {name: default for name, default, _ in table(ROOT / "docs" / "generating.md", "Option")}
    assert rows == {field.name: repr(field.default) for field in fields(Options)}


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
    assert [row[0] for row in rows] == [layer.replace(" : ", ", ") for layer in contract["layers"]]


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
