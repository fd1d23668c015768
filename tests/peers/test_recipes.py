"""The recipes of docs/recipes.md, each run with its package in an environment of its own, and what they print compared."""

import os
import re
import shlex
import shutil
import subprocess

import pytest
from helpers import doc_pages
from helpers.doc_pages import ROOT, SERVER, as_pattern, blocks
from helpers.package_environment import OFFLINE, our_package, python_with, requirements_of
from helpers.served import served

from llamafu.examples.adapters import example_adapters

PAGE = ROOT / "docs" / "recipes.md"
desk = doc_pages.desk  # a fixture
PACKAGES = {
    "LangChain": ("langchain", "langchain-openai"),
    "LlamaIndex": ("llama-index-llms-openai-like", "llama-index-embeddings-openai-like"),
    "LiteLLM": ("litellm",),
    "instructor": ("instructor",),
    "pydantic-ai": ("pydantic-ai-slim[openai]",),
    "DSPy": ("dspy",),
    "LangChain, without a server": (*requirements_of("chat"), "langchain", "langchain-core>=1"),
    "llm": (*requirements_of("chat"), "llm>=0.32"),
}
"""What each section needs, as test_client_packages.py and test_in_process.py have it, so that environments are shared."""
WITHOUT_A_SERVER = ("LangChain, without a server", "llm")


def sections():
    """Blocks of the page by the heading that they are under."""
    text = PAGE.read_text("utf-8")
    headings = [(text.count("\n", 0, match.start()) + 1, match[1]) for match in re.finditer(r"^## (.*)$", text, re.MULTILINE)]
    found = {}
    for block in blocks(PAGE):
        found.setdefault(max((line, name) for line, name in headings if line < block.line)[1], []).append(block)
    return found


def test_every_recipe_is_run():
    assert set(sections()) == set(PACKAGES)


@pytest.fixture(scope="module")
def url(real, tmp_path_factory):
    from llamafu.examples.model import example_model

    folder = tmp_path_factory.mktemp("recipes")
    (folder / "model.gguf").symlink_to(example_model())
    (folder / "adapters").mkdir()
    for path in example_adapters().values():
        shutil.copy(path, folder / "adapters")
    with served(folder / "model.gguf", "--adapters", folder / "adapters", "--library", real.path, "--threads", 2) as running:
        assert running.url, running.log
        yield running.url


def run(command, environment):
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=300, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.mark.parametrize("section", PACKAGES)
def test_recipe(section, request, real, desk):
    address = SERVER if section in WITHOUT_A_SERVER else request.getfixturevalue("url")
    python = python_with(*PACKAGES[section])
    installed = desk / "installed"
    installed.mkdir()
    ours = our_package(installed, real) if section in WITHOUT_A_SERVER else {}
    base = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "HOME": os.environ["HOME"]}
    folders = {"LLM_USER_PATH": str(desk / "llm"), "DSPY_CACHEDIR": str(desk / "dspy")}
    environment = {**base, **OFFLINE, **folders, **ours}
    (desk / "adapters").mkdir()
    for path in example_adapters().values():
        shutil.copy(path, desk / "adapters")
    for block, after in zip(found := sections()[section], [*found[1:], None], strict=True):
        if block.language == "python":
            said = run([str(python), "-c", block.text.replace(SERVER, address)], environment)
            assert said == after.text.strip()
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:] if block.language == "console" else ():
            line, _, expected = part.partition("\n")
            if line.startswith("llm "):
                said = run([str(python), "-m", *shlex.split(line)], environment)
                assert re.fullmatch(as_pattern(expected.strip()), said, re.DOTALL), said
