"""Every documented way to import something works, and is what its package holds; the linter's promises can fail."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.doc_pages import PEERS, ROOT

DOCUMENTED = {
    "llamafu": (
        "AppliedLora AsyncLlamafu Completion Engine FunctionTools Llamafu LoraAdapter Request bake convert_peft "
        "inspect_adapter merge_adapters"
    ),
    "llamafu.adapters": (
        "AdapterFile AdapterInfo AdapterNorms AdapterReader BaseModel Comparison CompatibilityReport Norm PairCosine "
        "TensorInfo adapter_norms bake check_adapter check_compatibility compare_adapters convert_peft export_peft "
        "inspect_adapter merge_adapters read_adapter read_base"
    ),
    "llamafu.client": "APIError AsyncTabbyClient LoraLoadInfo LoraLoadRequest TabbyClient",
    "llamafu.doctor": "examine",
    "llamafu.engine": "Engine EngineStats Request RequestHandle",
    "llamafu.errors": "ErrorCode LlamafuError LoraError InvalidScaleError GrammarError ClosedError",
    "llamafu.example_adapters": "example_adapters",
    "llamafu.example_model": "example_model",
    "llamafu.grammar": "schema_to_gbnf",
    "llamafu.integrations.langchain": "ChatLlamafu LlamafuEmbeddings",
    "llamafu.lora": "LoraAdapter",
    "llamafu.model": "AsyncLlamafu Llamafu",
    "llamafu.ray": "build_app",
    "llamafu.service": "LocalLoraService LoraCard LoraList LoraLoadInfo LoraLoadRequest LoraLoadResponse LoraService",
    "llamafu.sweep": "mixes page sweep",
    "llamafu._native": (
        "llamafu_lora_adapter_apply llamafu_lora_adapter_clear_all llamafu_lora_adapter_free llamafu_lora_adapter_init "
        "llamafu_lora_adapter_remove"
    ),
}
"""What may be imported from where; nothing here goes away without a word in CHANGELOG.md."""


@pytest.mark.parametrize("package", DOCUMENTED)
def test_documented_names_can_be_imported(package):
    if package in PEERS:
        pytest.importorskip(PEERS[package], reason="tests/peers has it in an environment of its own")
    module = importlib.import_module(package)
    for name in DOCUMENTED[package].split():
        assert getattr(module, name) is not None
        assert name in dir(module)


def test_every_import_of_the_docs_is_listed():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.py"))]
    for page in pages:
        for package, names in re.findall(r"^\s*from (llamafu[\w.]*) import ([\w, ]+)$", page.read_text("utf-8"), re.MULTILINE):
            for name in names.split(","):
                listed = package == "llamafu.errors" or name.strip() in DOCUMENTED[package].split()
                assert listed, f"{page.name}: from {package} import {name}"


@pytest.mark.parametrize(
    ("module", "wrong"),
    [
        ("llamafu/lora/scales.py", "from llamafu.engine.engine import Engine"),  # points up
        ("llamafu/engine/request.py", "from llamafu.model.llamafu import Llamafu"),  # to a sibling
        ("llamafu/adapters/gguf/ggml_type.py", "from llamafu.adapters.gguf.tensor_entry import TensorEntry"),  # a circle
    ],
)
def test_a_wrong_import_is_red(tmp_path, module, wrong):
    """Also where only type checkers follow it."""
    shutil.copytree(ROOT / "llamafu", tmp_path / "llamafu", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / module
    path.write_text(f"{path.read_text('utf-8')}\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {wrong}\n", "utf-8")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert " BROKEN" in done.stdout
