"""Norms of changes against dense matrices, and the pictures and tables that are made of them and of cosines."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.doc_pages import ROOT
from helpers.gguf_bytes import F32, GGML_F16, Tensor, adapter_bytes, typed
from helpers.merge_cases import NAME, dense, make
from matplotlib.image import imread

from llamafu.adapters import adapter_norms, compare_adapters, merge_adapters, read_adapter
from llamafu.adapters.analysis.plots import comparison_figure, norms_figure
from llamafu.adapters.info import split_name
from llamafu.cli.heat_map import heat_map
from llamafu.cli.main import main
from llamafu.cli.style import Style
from llamafu.examples.adapters import example_adapters

SHAPES = {
    "blk.0.attn_q.weight": (20, 12),
    "blk.3.attn_q.weight": (20, 12),
    "blk.3.ffn_up_exps.weight": (4, 8, 7),
    "token_embd.weight": (10, 30),
    "output.weight": (30, 10),
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def mixed(tmp_path):
    """F16, alpha 6, gaps, experts, and embeddings, whose factors lie transposed."""
    return make(tmp_path / "mixed.gguf", seed=3, shapes=SHAPES, dtype="F16")


def assert_dense(path):
    norms = adapter_norms(path)
    changes = dense(path)
    for name, change in changes.items():
        module, layer = split_name(name)
        wanted = np.sqrt((change**2).sum()), np.linalg.norm(change, 2, axis=(-2, -1)).max()
        if layer is None:
            found = norms.others[module]
        else:
            place = norms.layers.index(layer), norms.modules.index(module)
            found = norms.frobenius[place], norms.spectral[place]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, err_msg=name)
    assert np.isfinite(norms.frobenius).sum() + len(norms.others) == len(changes)
    return norms


def test_norms_equal_dense_ones(mixed):
    norms = assert_dense(mixed)
    assert (norms.layers, norms.modules, list(norms.others)) == ((0, 3), ("attn_q", "ffn_up_exps"), ["output", "token_embd"])
    assert np.isnan(norms.frobenius[0, 1])
    assert np.isnan(norms.spectral[0, 1])


def test_norms_of_other_adapters(tiny_adapter_b, tmp_path):
    """Alpha below the rank; no alpha; ranks above the smaller side; an adapter that changes nothing."""
    assert_dense(tiny_adapter_b)
    assert_dense(make(tmp_path / "none.gguf", seed=1, alpha=0.0))
    assert_dense(make(tmp_path / "high.gguf", seed=1, rank=16))
    merge_adapters({tiny_adapter_b: 0.0}, tmp_path / "nothing.gguf", method="cat")
    assert not adapter_norms(read_adapter(tmp_path / "nothing.gguf")).frobenius.any()


def test_two_names_of_one_place_are_added(tmp_path):
    """`NAME` and `NAME.weight` are one module in one layer."""
    path = make(tmp_path / "two.gguf", seed=1, shapes={NAME: (20, 12), NAME.removesuffix(".weight"): (20, 12)})
    wanted = np.sqrt(sum((change**2).sum() for change in dense(path).values()))
    assert adapter_norms(path).frobenius == pytest.approx(np.array([[wanted]]), rel=1e-5)


def test_json_is_strict_and_has_the_norms(mixed, tmp_path, capsys):
    assert main(["inspect", str(mixed), "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["norms"]
    norms = adapter_norms(mixed)
    assert found["frobenius"][0][1] is None
    assert found["spectral"][1] == norms.spectral[1].tolist()
    assert found["others"]["output"]["frobenius"] == norms.others["output"].frobenius
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(adapter_bytes({"odd": typed(F32, float("nan"))}))
    assert main(["inspect", str(odd), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"]["odd"] == "nan"


def test_heat_map_in_text(mixed):
    norms = adapter_norms(mixed)
    lines = heat_map(norms, Style(io.StringIO()), width=80, unicode=True)
    top = max(np.nanmax(norms.frobenius), *(norm.frobenius for norm in norms.others.values()))
    step = "▁▂▃▄▅▆▇█"[min(int(norms.frobenius[1, 0] / top * 8), 7)]
    total = np.hypot(*norms.frobenius[:, 0])
    assert re.fullmatch(rf"  attn_q +{total:.3g}  (.)\1{step}{step}", lines[2])
    assert re.fullmatch(r"  ffn_up_exps +\S+  ··(.)\1", lines[3])
    assert lines[-1].endswith(f"{top:.3g}   ·· not changed")
    digits = heat_map(norms, Style(io.StringIO()), width=80, unicode=False)
    assert all(line.isascii() for line in digits)
    assert re.fullmatch(r"  ffn_up_exps +\S+  \.\.(\d)\1", digits[3])


def test_heat_map_in_colour_unless_it_is_unwanted(mixed, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    norms = adapter_norms(mixed)
    assert "\x1b[38;5;226m██" in "".join(heat_map(norms, Style(Terminal()), width=80, unicode=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "".join(heat_map(norms, Style(Terminal()), width=80, unicode=True))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_heat_map_fits_the_terminal_and_shows_every_layer(width):
    norms = adapter_norms(example_adapters()["pirate"])
    lines = heat_map(norms, Style(io.StringIO()), width=width, unicode=True)
    rows = [re.fullmatch(r"  attn_q +[\d.]+  ([▁-█]+)", line) for line in lines]
    cells = "".join(row[1] for row in rows if row)
    assert len(cells) == (60 if width >= 84 else 30)
    assert max(len(line) for line in lines[1:]) <= max(width, 30)


def test_inspect_draws_here_or_in_a_file(mixed, tmp_path, capsys):
    assert main(["inspect", str(mixed), "--plot"]) == 0
    assert "norm of the change" in capsys.readouterr().out
    assert main(["inspect", str(mixed), "--plot", str(tmp_path / "map.PNG")]) == 0
    assert f"heat map: {tmp_path / 'map.PNG'}" in capsys.readouterr().out
    assert main(["inspect", str(mixed), "--plot", "map.pdf"]) == 2
    assert "'map.pdf' does not end in .png" in capsys.readouterr().err
    assert main(["inspect", str(mixed), "--json", "--plot"]) == 2
    assert main(["inspect", str(mixed), "--plot", str(tmp_path / "no" / "map.png")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["inspect", str(mixed), "--base", "x"]) == 2
    assert "--base is for PEFT folders" in capsys.readouterr().err


def test_without_matplotlib_one_line_says_what_to_install(mixed, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in (["inspect", str(mixed)], ["compare", str(mixed), str(mixed)]):
        assert main([*command, "--plot", str(tmp_path / "map.png")]) == 1
        assert capsys.readouterr().err.endswith('not installed: pip install "llamafu[plot]"\n')
    assert not (tmp_path / "map.png").exists()


def test_norms_figure_shows_the_norms(mixed):
    norms = adapter_norms(mixed)
    figure = norms_figure(norms, "odd $name_")
    layered, others, bar = figure.axes
    np.testing.assert_array_equal(layered.images[0].get_array().filled(np.nan), norms.frobenius.T)
    assert [label.get_text() for label in layered.get_yticklabels()] == list(norms.modules)
    assert [label.get_text() for label in layered.get_xticklabels()] == ["0", "3"]
    assert [label.get_text() for label in others.get_yticklabels()] == ["output", "token_embd"]
    assert layered.images[0].get_clim() == others.images[0].get_clim()
    assert layered.images[0].get_clim()[0] == 0
    assert "Frobenius" in bar.get_ylabel()
    assert figure.get_suptitle().startswith("odd $name_")


def test_comparison_figure_shows_the_cosines(tiny_adapter_a, tiny_adapter_b, tmp_path):
    merge_adapters({tiny_adapter_a: -1.0, tiny_adapter_b: 2.0}, tmp_path / "c.gguf", method="cat")
    comparison = compare_adapters([tiny_adapter_a, tiny_adapter_b, tmp_path / "c.gguf"])
    assert round(comparison.overall[0, 1], 2) == 0
    left, right = comparison_figure(comparison).subfigs
    one, two = (f"{comparison.overall[2, other]:+.2f}".replace("-", "\u2212") for other in (0, 1))
    assert [text.get_text() for text in left.axes[0].texts] == ["0.00", one, "0.00", two, one, two]
    shown = {axis.get_title(): axis.images[0] for axis in right.axes if axis.images}
    assert list(shown) == list(comparison.by_module)
    assert shown["ffn_up"].get_array().mask.tolist() == [[False, True, False], [True] * 3, [False, True, False]]
    assert shown["attn_q"].get_array()[0, 1] == comparison.by_module["attn_q"][0, 1]
    assert {image.get_clim() for image in shown.values()} == {(-1.0, 1.0)}


@pytest.mark.parametrize("picture", ["inspect.png", "compare.png"])
def test_pictures_of_the_docs_are_what_their_commands_draw(picture, tmp_path, monkeypatch, capsys):
    """Fonts may differ in another matplotlib, so sizes and colours are compared, not bytes."""
    monkeypatch.chdir(tmp_path)
    for name, path in example_adapters().items():
        (tmp_path / f"{name}.gguf").write_bytes(path.read_bytes())
    page = (ROOT / "docs" / "inspecting.md").read_text("utf-8")
    lines = re.findall(r"^\$ llamafu (merge .*|.*--plot " + re.escape(picture) + ")$", page, re.MULTILINE)
    for line in lines:
        assert main(line.split()) == 0
    shown = ROOT / "docs" / "images" / picture
    assert shown.stat().st_size < 150_000
    drawn, kept = imread(tmp_path / picture), imread(shown)
    assert np.abs(np.subtract(drawn.shape, kept.shape)).max() <= 4
    height, width = np.minimum(drawn.shape, kept.shape)[:2]
    assert np.abs(drawn[:height, :width] - kept[:height, :width]).mean() < 0.05
    assert len(np.unique((drawn[..., :3] * 15).astype(int).reshape(-1, 3), axis=0)) > 20


def test_plain_inspect_needs_neither_numpy_nor_gguf():
    """Their imports take longer than all the rest."""
    code = "import sys; from llamafu.cli.main import main; main(); sys.exit(str({'numpy', 'gguf'} & set(sys.modules)))"
    path = str(example_adapters()["pirate"])
    done = subprocess.run([sys.executable, "-c", code, "inspect", path], capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"


def test_peft_folders_need_their_base(capsys):
    """What they give with one, the documentation's page shows and its test runs."""
    folder = ROOT / "examples" / "adapters" / "pirate"
    assert main(["inspect", str(folder)]) == 2
    assert "is a PEFT folder, which needs the model that it is for: give --base MODEL" in capsys.readouterr().err


def test_a_change_of_zero_is_drawn(tmp_path):
    """Nothing is divided by a largest norm of 0."""
    tensors = [Tensor(f"{NAME}.lora_a", (8, 2), GGML_F16), Tensor(f"{NAME}.lora_b", (2, 8), GGML_F16)]
    path = tmp_path / "zero.gguf"
    path.write_bytes(adapter_bytes(tensors=tensors))
    norms = adapter_norms(path)
    assert norms.frobenius.tolist() == [[0.0]]
    assert "▁" in heat_map(norms, Style(io.StringIO()), width=80, unicode=True)[2]
    norms_figure(norms, "zero")
