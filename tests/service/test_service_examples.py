"""`examples/service/`: each program runs as it is, against a server over the real model and the two example adapters."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.served import ADMIN, API, served

from llamafu.errors import LlamafuError
from llamafu.examples.adapters import example_adapters
from llamafu.examples.model import example_model

PROGRAMS = Path(__file__).resolve().parents[2] / "examples" / "service"
TWO = ("1. pirate (scaling: 0.80)", "2. shout (scaling: 0.50)")
STEPS = (  # in this order: what one loads, the next one sees. Each has the beginnings of its lines.
    ("list_adapters", ["Found 2 available", "1. pirate (owned by: llamafu)", "   Created: 20", "2. shout", "   Created: 20"]),
    ("active_adapters", ["No LoRA adapters"]),
    (
        "generate",
        ["Loading", "Successfully loaded LoRA adapter: pirate", "Gen", "", "Gen", "Arrr, ", "", "LoRA adapter unloaded"],
    ),
    ("handle_errors", ["You need admin", "One or more", "Invalid request parameters: ", "This key", "Loaded pirate"]),
    ("active_adapters", ["No LoRA adapters"]),
    ("load_adapters", ["Loading", "Successfully loaded adapters: pirate, shout", "Currently active LoRA adapters (2)", *TWO]),
    ("active_adapters", ["Currently active LoRA adapters (2)", *TWO]),
    ("compare_scales", ["0.0  The capital of Germany is Berlin.", "0.2  ", "0.5  ", "0.8  Arrr, "]),
    ("unload_adapters", ["Currently active", "1. pirate", "2. shout", "Unloading", "Successfully", "Confirmed"]),
    ("unload_adapters", ["No LoRA adapters"]),
)


@pytest.fixture(scope="module")
def model(real):
    try:
        return example_model()
    except LlamafuError as error:
        pytest.skip(f"the example model cannot be had: {error}")


@pytest.fixture
def folder(tmp_path):
    for path in example_adapters().values():
        shutil.copy(path, tmp_path)
    return tmp_path


def run(name, *arguments, **environment):
    command = [sys.executable, PROGRAMS / f"{name}.py", *arguments]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env={**os.environ, **environment}, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_programs_that_ask_a_server(model, real, folder):
    with served(model, "--adapters", folder, "--library", real.path) as server:
        for name, expected in STEPS:
            said = run(name, EXAMPLE_URL=server.url, EXAMPLE_ADMIN_KEY=ADMIN, EXAMPLE_API_KEY=API)
            lines = said.splitlines()
            assert len(lines) == len(expected), (name, said)
            assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), (name, said)
    assert {name for name, _ in STEPS} | {"in_process"} == {path.stem for path in PROGRAMS.glob("*.py")}


def test_the_program_that_needs_no_server(model, real, folder):
    said = run("in_process", model, folder, LLAMAFU_LIB=str(real.path))
    lines = said.splitlines()
    assert (*lines[:2], lines[-1]) == ("available: pirate, shout", "active: {'pirate': 0.8}", "active: {}")
    assert lines[2].startswith("Arrr, ")
