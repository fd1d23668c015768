"""Calibrated baking: the grids against gguf, the inputs against NumPy, the fit against rounding to the nearest."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from test_bake import TEXT, data, divergence, logits, no_library, write_model  # noqa: F401 - a fixture
from test_combine import make

from llamafu._native import finding
from llamafu._native.library import open_library
from llamafu.adapters import bake, read_base
from llamafu.adapters.fitting import fit, lens
from llamafu.adapters.ggml_type import GGMLType
from llamafu.adapters.grid import RANGES, put_together, taken_apart
from llamafu.calibration import Calibration, _groups
from llamafu.calibration_text import FEWEST_TOKENS
from llamafu.cli.main import main
from llamafu.errors import LibraryNotFoundError, LoraError
from llamafu.likeness import likeness


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.mark.parametrize("kind", RANGES, ids=str)
def test_grids_are_read_as_gguf_reads_them(kind):
    rows = np.random.default_rng(1).standard_normal((6, 96)).astype(np.float32)
    rows[2, :32] = 0
    raw = quants.quantize(rows, Kind(kind))
    grid = taken_apart(raw.tobytes(), kind, 6)
    np.testing.assert_array_equal(grid.steps * grid.numbers + grid.offsets, quants.dequantize(raw, Kind(kind)))
    assert put_together(grid) == raw.tobytes()


def test_a_fit_keeps_what_the_nearest_loses():
    """On inputs that it has not seen: so much as this, and less than all, which is what `write_calibrated` makes up for.

    Rounding to the nearest in `_handed_on` and leaving the scales alone turns it red.
    """
    random = np.random.default_rng(7)
    mixing = random.standard_normal((128, 128)) * np.exp(-np.arange(128) / 3)  # few directions carry most of the inputs
    seen, unseen = (random.standard_normal((2000, 128)) @ mixing.T for _ in range(2))
    raw = quants.quantize(random.standard_normal((64, 128)).astype(np.float32), Kind.Q4_0)
    base = taken_apart(raw.tobytes(), GGMLType.Q4_0, 64)
    a = random.standard_normal((4, 128)).astype(np.float32)
    change = 0.004 * random.standard_normal((64, 4)).astype(np.float32) @ a
    assert np.abs(change).max() < 0.5 * np.abs(base.scale).min()

    def kept_and_error(values):
        right = unseen @ change.T
        got = unseen @ (values - base.steps * base.numbers).T
        return np.vdot(got, right) / np.vdot(right, right), np.linalg.norm(got - right) / np.linalg.norm(right)

    nearest = quants.dequantize(quants.quantize(base.steps * base.numbers + change, Kind.Q4_0), Kind.Q4_0)
    grid = fit(base, change, lens(seen.T @ seen / 2000, a))
    assert taken_apart(put_together(grid), GGMLType.Q4_0, 64).numbers.tolist() == grid.numbers.tolist()
    kept, error = kept_and_error(grid.steps * grid.numbers)
    assert kept_and_error(nearest)[0] < 0.1
    assert kept == pytest.approx(1, abs=0.15)
    assert error < 0.6


def test_a_type_that_holds_the_change_is_not_stretched():
    random = np.random.default_rng(3)
    raw = quants.quantize(random.standard_normal((32, 64)).astype(np.float32), Kind.Q8_0)
    base = taken_apart(raw.tobytes(), GGMLType.Q8_0, 32)
    x = random.standard_normal((1000, 64))
    a = random.standard_normal((4, 64)).astype(np.float32)
    change = 0.1 * random.standard_normal((32, 4)).astype(np.float32) @ a
    grid = fit(base, change, lens(x.T @ x / 1000, a))
    got = grid.steps * grid.numbers - base.steps * base.numbers
    assert np.vdot(got, change) / np.vdot(change, change) == pytest.approx(1, abs=0.02)


def test_inputs_are_what_the_matrices_see(tiny_model, tiny_adapter_a, reference):
    """The first layer's by hand: the embeddings, normalised. q, k and v share one sum."""
    proven = finding.find()
    library = open_library(proven.path, proven.family)
    names = [f"blk.0.attn_{part}.weight" for part in "qkv"]
    found = Calibration(library, tiny_model, [], dict.fromkeys(names, 64), text=TEXT, n_threads=1)
    try:
        assert sum(map(len, found._read + found._held)) > FEWEST_TOKENS
        assert not {tuple(window) for window in found._read} & {tuple(window) for window in found._held}
        tokens = [token for window in found._read for token in window]
        x = reference._rms_norm(reference.weights["token_embd.weight"][tokens], "blk.0.attn_norm.weight")
        for name in names:
            np.testing.assert_allclose(found.moment(name), x.T @ x / len(x), rtol=0, atol=1e-4)
        assert len(found._inputs._sums) == 1
    finally:
        found.close()


def test_a_pass_gathers_what_has_room(monkeypatch):
    monkeypatch.setattr("llamafu.calibration._ROOM", 8 * (3 * 100 * 100))
    assert list(_groups({"a": 100, "b": 100, "c": 100, "d": 200, "e": 10})) == [["a", "b", "c"], ["d"], ["e"]]


def test_the_result_is_nearer_to_the_live_adapter(tiny_dir, tiny_adapter_a, tmp_path, text):
    model, use = tiny_dir / "tiny-q4_0.gguf", {tiny_adapter_a: 1.0}
    shares = []
    text.write_text("Hello, the world was in you and all of it. " * 40, "utf-8")  # what `logits` reads
    live = logits(model, use)
    nearest = bake(model, use, tmp_path / "nearest.gguf")
    fitted = bake(model, use, tmp_path / "fitted.gguf", calibration=text, on_progress=shares.append)
    assert divergence(live, logits(fitted, {})) < 0.6 * divergence(live, logits(nearest, {}))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    facts = {path: read_base(path).metadata for path in (nearest, fitted)}
    assert facts[fitted]["llamafu.bake.0.calibration"] == "text.txt"
    assert "llamafu.bake.0.calibration" not in facts[nearest]
    before, after = data(nearest), data(fitted)
    assert {name: facts[1:] for name, facts in before.items()} == {name: facts[1:] for name, facts in after.items()}
    again = bake(model, use, tmp_path / "again.gguf", calibration=text)
    assert again.read_bytes() == fitted.read_bytes()


def test_the_aim_is_corrected_by_what_is_measured(tiny_dir, tiny_adapter_a, tmp_path, text, caplog):
    """Another exponent than a half in `write_calibrated`, or leaving the aim alone, turns it red."""
    caplog.set_level("DEBUG", "llamafu.baking")
    bake(tiny_dir / "tiny-q4_0.gguf", {tiny_adapter_a: 1.0}, tmp_path / "out.gguf", calibration=text)
    (_, first, _), (aim, second, _) = (record.args for record in caplog.records if "aim" in record.msg)
    assert aim == pytest.approx(first**-0.5)
    assert abs(second - 1) < 0.5 * abs(first - 1)


def test_a_change_that_drowns_in_noise_is_rounded_to_the_nearest(tiny_dir, tiny_adapter_a, tmp_path, text, caplog):
    model, use = tiny_dir / "tiny-q4_0.gguf", {tiny_adapter_a: 0.02}
    out = bake(model, use, tmp_path / "out.gguf", calibration=text)
    assert "too small for calibration" in caplog.text
    assert out.read_bytes() == bake(model, use, tmp_path / "nearest.gguf").read_bytes()


def test_likeness_is_a_share_of_the_divergence():
    """Of small changes, in both directions; logits that all move alike change nothing."""
    random = np.random.default_rng(0)
    base = random.standard_normal((3, 40))
    change, noise = 0.01 * random.standard_normal((2, 3, 40))

    class Told:
        def __init__(self, logits):
            self.logits = logits.astype(np.float32)

        def clear(self):
            pass

        def decode(self, _tokens, _position, *, all_logits):
            assert all_logits

        def output_rows(self, count):
            return self.logits[:count]

    found = likeness(Told(base), Told(base + change), Told(base + change + noise + 5), [[1, 2, 3]])
    live, tried = softmax(base + change), softmax(base + change + noise)
    whole = (live * np.log(live / softmax(base))).sum()
    assert found.error == pytest.approx((live * np.log(live / tried)).sum() / whole, rel=0.03)
    assert found.size == pytest.approx((softmax(base) * np.log(softmax(base) / tried)).sum() / whole, rel=0.03)
    assert likeness(Told(base), Told(base), Told(base), [[1, 2]]) == (1, 0)


def softmax(logits):
    shares = np.exp(logits)
    return shares / shares.sum(-1, keepdims=True)


def test_a_model_without_coarse_types_is_baked_as_ever(tiny_model, tiny_adapter_a, tmp_path, text):
    one = bake(tiny_model, {tiny_adapter_a: 1}, tmp_path / "one.gguf", calibration=text)
    two = bake(tiny_model, {tiny_adapter_a: 1}, tmp_path / "two.gguf")
    assert data(one) == data(two)


def test_command(tiny_dir, tiny_adapter_b, tmp_path, capsys, monkeypatch):
    """`auto`: the model writes the text itself."""
    for name in ("_QUESTIONS", "_OPENINGS"):
        monkeypatch.setattr(f"llamafu.calibration_text.{name}", ("What is it?", "The"))
    out = tmp_path / "out.gguf"
    words = ["bake", "-m", str(tiny_dir / "tiny-q4_0.gguf"), "--lora", str(tiny_adapter_b), "-o", str(out)]
    assert main([*words, "--calibrate", "auto"]) == 0
    assert "baked in" in capsys.readouterr().out
    assert read_base(out).metadata["llamafu.bake.0.calibration"] == "auto"
    assert main([*words, "--calibrate", "auto", "--dtype", "f16"]) == 2
    assert main([*words, "--calibrate", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err


def test_what_cannot_be_calibrated(tiny_dir, tiny_adapter_a, tmp_path, text):
    model, out = tiny_dir / "tiny-q4_0.gguf", tmp_path / "out.gguf"
    (tmp_path / "short.txt").write_text("too short", "utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    use = {tiny_adapter_a: 1}
    random = np.random.default_rng(0)
    shapes = {"blk.0.ffn_up_exps.weight": (5, 32, 32), "blk.0.attn_q.weight": (32, 32)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    kinds = {"blk.0.ffn_up_exps.weight": Kind.Q4_0, "blk.0.attn_q.weight": Kind.Q5_0}
    made = write_model(tmp_path / "m.gguf", arrays, kinds=kinds)
    stack, other = ({make(tmp_path / f"{i}.gguf", seed=1, shapes={name: shapes[name]}): 1} for i, name in enumerate(shapes))
    for source, adapters, options, kind, words in (
        (model, use, {"calibration": text, "dtype": "q8_0"}, ValueError, "keeps the types"),
        (model, use, {"calibration": tmp_path / "short.txt"}, ValueError, f"at least {FEWEST_TOKENS}"),
        (model, use, {"calibration": tmp_path / "latin.txt"}, ValueError, "no UTF-8"),
        (model, use, {"calibration": tmp_path / "absent.txt"}, FileNotFoundError, "absent"),
        (made, stack, {"calibration": text}, LoraError, "ffn_up_exps.weight: no plain matrix product"),
        (made, other, {"calibration": text}, LoraError, "attn_q.weight: its type Q5_0 cannot be calibrated"),
    ):
        with pytest.raises(kind, match=words):
            bake(source, adapters, out, **options)
        assert not out.exists()


def test_a_library_is_needed(no_library, tiny_dir, tiny_adapter_a, tmp_path, text):  # noqa: F811
    with pytest.raises(LibraryNotFoundError, match="calibration runs the model"):
        bake(tiny_dir / "tiny-q4_0.gguf", {tiny_adapter_a: 1}, tmp_path / "out.gguf", calibration=text)
