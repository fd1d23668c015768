"""`llamafu bench`, on the tiny model."""

import json
import re

import pytest

from llamafu.adapters import inspect_adapter
from llamafu.cli.main import main
from llamafu.engine import Engine
from llamafu.engine.benchmark import measure, write_random_adapter

FEW = ["--tokens", "4", "--rounds", "2", "--threads", "1"]


def test_bench_measures_every_kind(tiny_model, tiny_adapter_a, capsys):
    assert main(["bench", "-m", str(tiny_model), "--lora", str(tiny_adapter_a), "--k", "3,1", *FEW, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [result["k"] for result in report["results"]] == [1, 3]
    assert report["adapters"] == {"given": ["a.gguf"], "ranks": [inspect_adapter(tiny_adapter_a).rank, 8, 8], "random": 2}
    for result in report["results"]:
        for side in ("base", "same", "mixed"):
            for value in (result[side][name] for name in ("tokens_per_second", "ttft", "inter_token_p50")):
                assert 0 < value["lowest"] <= value["median"] <= value["highest"]
        assert result["base"]["mixed_steps"] == result["same"]["mixed_steps"] == 0
        assert bool(result["mixed"]["mixed_steps"]) == (result["k"] > 1)
    ratio = report["results"][1]["mixed_over_same"]
    assert 0 < ratio["lowest"] <= ratio["highest"]
    assert {"cpu", "threads", "library", "kernel"} <= report["conditions"].keys()


def test_bench_as_text(tiny_model, capsys):
    assert main(["bench", "-m", str(tiny_model), "--k", "2", *FEW]) == 0
    out = capsys.readouterr().out
    assert "0 given, 2 random; ranks 8, 8" in out
    assert "each its own / one for all: " in out
    assert re.search(r"^ +2  each its own +[0-9.]+ \([0-9.]+ to [0-9.]+\) +[0-9.]+ \(", out, re.MULTILINE)


def test_runs_are_of_their_own(tiny_model, tmp_path):
    """Nothing that a run computed helps the next one, and its times are its own."""
    with Engine(tiny_model, n_ctx=512, n_threads=1) as engine:
        write_random_adapter(engine, tmp_path / "x.gguf", rank=8, seed=1)
        engine.add_adapter(tmp_path / "x.gguf")
        for number in range(2):
            run = measure(engine, [{}, {"x": 1.0}], tokens=4, number=number)
            assert len(engine._scheduler.recorder.ttft) == 2
            assert len(engine._scheduler.recorder.itl) == 2 * 3
            assert run.mixed_steps
        assert engine.stats().cached_tokens == 0
        assert engine.stats().completion_tokens == 2 * 2 * 4


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--k", "0"], 2, "'0' is not a whole number of at least 1"),
        (["--k", "two"], 2, "'two' is not a whole number"),
        (["--tokens", "1"], 2, "at least 2"),
        (["--lora", "none.gguf"], 1, "none.gguf"),
    ],
)
def test_bench_refuses(tiny_model, capsys, words, status, says):
    assert main(["bench", "-m", str(tiny_model), *words]) == status
    assert says in capsys.readouterr().err
