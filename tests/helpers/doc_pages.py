"""Pages of the documentation: their tables, and their blocks run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.hub_repositories import Repository, hub_package
from helpers.media_made import picture, png
from helpers.served import served as server_process
from llamafu.cli.main import _parser
from llamafu.errors import LlamafuError
from llamafu.examples.adapters import example_adapters
from llamafu.examples.model import example_model

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture
def desk(tmp_path, tiny_dir, monkeypatch):
    """A folder with the files that the pages name."""
    from helpers.dora_folders import dora_folder
    from helpers.peft_folders import arrays_of  # both files import this one's ROOT

    try:
        model = example_model()
    except LlamafuError as error:
        pytest.skip(f"the example model cannot be had: {error}")
    (tmp_path / "model.gguf").symlink_to(model)
    for name, path in example_adapters().items():
        shutil.copy(path, tmp_path / f"{name}.gguf")
        shutil.copytree(ROOT / "examples" / "adapters" / name, tmp_path / name)
    shutil.copy(tiny_dir / "tiny.gguf", tmp_path / "tiny.gguf")
    shutil.copy(tiny_dir / "tiny-rank.gguf", tmp_path / "reranker.gguf")
    for name, source in (("vision", "tiny"), ("mmproj", "mmproj-llava"), ("vision-lora", "a")):
        shutil.copy(tiny_dir / f"{source}.gguf", tmp_path / f"{name}.gguf")
    (tmp_path / "picture.png").write_bytes(png(picture()))
    shutil.copy(tiny_dir / "alora.gguf", tmp_path / "alora.gguf")
    dora_folder(tmp_path / "dora", arrays_of(layers=1, modules=["mlp.up_proj"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def served(page, desk):
    """Give the address of a server over the model and the two adapters for a page that speaks to one, itself for any other.

    A page with references to the hub gets one that has them.
    """
    if any('"hf:' in block.text for block in blocks(page)):
        with hub_package(_repositories(desk), desk / "hub"):
            yield SERVER
        return
    if not any(SERVER in block.text and not lacks_a_peer(block) for block in blocks(page)):
        yield SERVER
        return
    folder = desk / "adapters"
    folder.mkdir()
    for path in example_adapters().values():
        shutil.copy(path, folder)
    with server_process(desk / "model.gguf", "--adapters", folder) as running:
        assert running.url, running.log
        yield running.url


def _repositories(desk):
    """Repositories with the model and the two adapters, one of them as a PEFT folder."""
    folder = {path.name: path for path in (desk / "pirate").iterdir()}
    model = {"model-Q4_1.gguf": (desk / "model.gguf").resolve()}
    return {"owner/model-GGUF": Repository(model), "owner/pirate-lora": Repository(folder)}


def run_python(page, block, namespace, address):
    """Execute one block; a failure's traceback shows the page and the line in it."""
    text = block.text.replace(SERVER, address)
    code = compile("\n" * (block.line - 1) + text, str(page), "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)  # noqa: S102 - our own pages
    return printed.getvalue()


PEERS = {
    "agents": "agents",
    "openai": "openai",
    "dspy": "dspy",
    "instructor": "instructor",
    "langchain_openai": "langchain_openai",
    "litellm": "litellm",
    "llama_index": "llama_index",
    "llamafu.integrations.langchain": "langchain_core",
    "pydantic_ai": "pydantic_ai",
    "llamafu.ray": "ray",
}
"""What pages import that need not be installed here, by the package that has to be; `tests/peers/` has them."""


def lacks_a_peer(block):
    imported = re.findall(r"^(?:from|import) ([\w.]+)", block.text, re.MULTILINE)
    needed = {package for name, package in PEERS.items() for each in imported if f"{each}.".startswith(f"{name}.")}
    return any(importlib.util.find_spec(package) is None for package in needed)


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
        ours = {"git", "cd", "export"}
        assert words[0] in ours | {"llm", "lm_eval", "ray"}, (
            f"{words}: what should this be checked by?"
        )  # tests/peers runs these


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


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
        elif block.language != "mermaid":  # a drawing
            assert not printed, f"{where}: the block before this one printed {printed!r}, which the page does not show"
            if block.language == "python":
                printed = None if lacks_a_peer(block) else run_python(page, block, namespace, address)
            else:
                assert block.language == "console", f"{where}: blocks are python, text or console, so that they can be run"
                run_console(block, address)
        last = block.language
    assert not printed, f"{named(page)}: its last block printed {printed!r}, which the page does not show"


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
