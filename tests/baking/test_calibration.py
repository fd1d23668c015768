"""Calibrated baking: the blocks against gguf, the inputs against NumPy, the fit against rounding to the nearest."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from helpers.baked_models import TEXT, data, divergence, logits, no_library, write_model  # noqa: F401 - a fixture
from helpers.merge_cases import make

from llamafu._native.context import Context
from llamafu._native.context_options import ContextOptions
from llamafu._native.ggml_codec import GgmlCodec
from llamafu._native.graph.matmul_hook import MatmulHook
from llamafu._native.library import open_library
from llamafu._native.model import Model
from llamafu.adapters import bake, read_base
from llamafu.adapters.gguf.ggml_type import GGMLType
from llamafu.adapters.gguf.shard import read_shards
from llamafu.adapters.reader import AdapterReader
from llamafu.baking.calibration import Calibration, calibrated_matrices
from llamafu.baking.calibration_data import _SAMPLE, FEWEST_TOKENS, WINDOW, generated_windows, packed, text_windows
from llamafu.baking.fidelity import Fidelity, measure_fidelity
from llamafu.baking.gptq import fit, input_stats
from llamafu.baking.quant_blocks import RANGES, pack_blocks, unpack_blocks
from llamafu.baking.sequential import SequentialQuantiser
from llamafu.baking.writer import BakeRecipe
from llamafu.cli.main import main
from llamafu.errors import DecodeError, LibraryNotFoundError, LoraError, ModelLoadError
from llamafu.libraries import discovery


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.mark.parametrize("kind", RANGES, ids=str)
def test_blocks_are_read_as_gguf_reads_them(kind):
    rows = np.random.default_rng(1).standard_normal((6, 96)).astype(np.float32)
    rows[2, :32] = 0
    raw = quants.quantize(rows, Kind(kind))
    blocks = unpack_blocks(raw.tobytes(), kind, 6)
    np.testing.assert_array_equal(blocks.steps * blocks.integers + blocks.offsets, quants.dequantize(raw, Kind(kind)))
    assert pack_blocks(blocks) == raw.tobytes()


def test_a_fit_keeps_what_the_nearest_loses():
    """On inputs that it has not seen.

    Rounding to the nearest in `gptq_round` and leaving the scales alone turns it red.
    """
    random = np.random.default_rng(7)
    mixing = random.standard_normal((128, 128)) * np.exp(-np.arange(128) / 3)  # few directions carry most of the inputs
    seen, unseen = (random.standard_normal((2000, 128)) @ mixing.T for _ in range(2))
    raw = quants.quantize(random.standard_normal((64, 128)).astype(np.float32), Kind.Q4_0)
    base = unpack_blocks(raw.tobytes(), GGMLType.Q4_0, 64)
    a = random.standard_normal((4, 128)).astype(np.float32)
    change = 0.004 * random.standard_normal((64, 4)).astype(np.float32) @ a
    assert np.abs(change).max() < 0.5 * np.abs(base.scale).min()

    def kept_and_error(values):
        right = unseen @ change.T
        got = unseen @ (values - base.steps * base.integers).T
        return np.vdot(got, right) / np.vdot(right, right), np.linalg.norm(got - right) / np.linalg.norm(right)

    nearest = quants.dequantize(quants.quantize(base.steps * base.integers + change, Kind.Q4_0), Kind.Q4_0)
    blocks = fit(base, change, input_stats(seen.T @ seen / 2000, a))
    assert unpack_blocks(pack_blocks(blocks), GGMLType.Q4_0, 64).integers.tolist() == blocks.integers.tolist()
    kept, error = kept_and_error(blocks.steps * blocks.integers)
    assert kept_and_error(nearest)[0] < 0.1
    assert kept == pytest.approx(1, abs=0.15)
    assert error < 0.6


def test_a_type_that_holds_the_change_is_not_stretched():
    random = np.random.default_rng(3)
    raw = quants.quantize(random.standard_normal((32, 64)).astype(np.float32), Kind.Q8_0)
    base = unpack_blocks(raw.tobytes(), GGMLType.Q8_0, 32)
    x = random.standard_normal((1000, 64))
    a = random.standard_normal((4, 64)).astype(np.float32)
    change = 0.1 * random.standard_normal((32, 4)).astype(np.float32) @ a
    blocks = fit(base, change, input_stats(x.T @ x / 1000, a))
    got = blocks.steps * blocks.integers - base.steps * base.integers
    assert np.vdot(got, change) / np.vdot(change, change) == pytest.approx(1, abs=0.02)


@pytest.fixture
def model(tiny_dir):
    proven = discovery.find()
    opened = Model(open_library(proven.path, proven.family), tiny_dir / "tiny-q4_0.gguf")
    yield opened
    opened.close()


@pytest.fixture
def recipe(model, tiny_dir, tiny_adapter_a):
    path = tiny_dir / "tiny-q4_0.gguf"
    file = AdapterReader(read_base(path)).read(tiny_adapter_a)
    kinds = {entry.name: entry.type for shard in read_shards(path) for entry in shard.container.tensors.values()}
    return BakeRecipe([(file, 1.0)], {name: kinds[name] for name in file.pairs}, GgmlCodec(model.library), 2)


def read_twice(model, tokens, names, take):
    """The logits [2 x tokens, n_vocab] of two sequences of equal tokens in one decode."""
    hook = MatmulHook(model.library, names, take)
    count = len(tokens)
    options = ContextOptions(n_ctx=2 * WINDOW, n_batch=2 * count, n_seq_max=2, type_k="f32", type_v="f32", flash_attn="off")
    context = Context(model, options, hook=hook)
    try:
        code = context.compute(tokens * 2, [*range(count)] * 2, [0] * count + [1] * count, [True] * (2 * count))
        hook.check()
        assert code == 0
        return context.output_rows(2 * count).astype(np.float64)
    finally:
        context.close()


@pytest.fixture
def words(model):
    return model.tokenize(b"Hello, the world was in you and all of it.", add_special=True, parse_special=True)


def test_half_of_the_rows_are_live_and_half_rounded(model, recipe, words, tiny_dir, tiny_adapter_a, tmp_path):
    """Against decodes of their own. Taking another matrix for either half turns it red."""
    path = tiny_dir / "tiny-q4_0.gguf"
    shares = []
    quantiser = SequentialQuantiser(calibrated_matrices(read_shards(path), recipe), recipe, shares.append)
    live, rounded = np.split(read_twice(model, words, recipe.kinds, quantiser.take), 2)
    assert shares[-1] == 1
    assert quantiser.fitted.keys() == recipe.kinds.keys()
    content = bytearray(path.read_bytes())
    for shard in read_shards(path):
        for name, raw in quantiser.fitted.items():
            entry = shard.container.tensors[name]
            content[entry.offset : entry.offset + entry.nbytes] = raw
    (tmp_path / "rounded.gguf").write_bytes(content)
    change = divergence(logits(path, {tiny_adapter_a: 1.0}), logits(path, {}))
    # libllama rounds the inputs of products to eight bits, and calibration does not
    assert divergence(logits(path, {tiny_adapter_a: 1.0}), live) < 0.005 * change
    assert divergence(logits(tmp_path / "rounded.gguf", {}), rounded) < 0.005 * change


def test_inputs_are_what_the_matrices_see(tiny_model, reference):
    """The first layer's by hand: the embeddings, normalised. q, k and v share one input, the output has another.

    What writes to the residual stream is added to it: in the first layer to the embeddings.
    """
    proven = discovery.find()
    opened = Model(open_library(proven.path, proven.family), tiny_model)
    met = {}
    try:
        tokens = opened.tokenize(TEXT.encode(), add_special=True, parse_special=True)[:100]
        names = [f"blk.0.attn_{part}.weight" for part in ("q", "k", "v", "output")]
        last = [f"blk.{opened.n_layer - 1}.{part}.weight" for part in ("attn_output", "ffn_down")]

        def see(product):
            met[product.name] = product._replace(x=product.x.copy(), residual=copied(product.residual))

        read_twice(opened, tokens, [*names, *last], see)
    finally:
        opened.close()
    stream = reference.weights["token_embd.weight"][tokens * 2]
    right = reference._rms_norm(stream, "blk.0.attn_norm.weight")
    for name in names[:3]:
        np.testing.assert_allclose(met[name].x, right, rtol=0, atol=1e-4)
        assert met[name].residual is None
    sources = [met[name].source for name in names]
    assert sources[0] == sources[1] == sources[2] != sources[3]
    np.testing.assert_allclose(met[names[3]].residual, stream, rtol=0, atol=1e-6)
    assert all(met[name].residual is not None for name in last)
    assert not np.allclose(met[last[0]].residual, met[last[1]].residual, rtol=0, atol=1e-3)


def copied(values):
    return None if values is None else values.copy()


def test_what_is_measured_was_not_read(model, recipe, tiny_dir):
    with Calibration(model.library, tiny_dir / "tiny-q4_0.gguf", recipe, text=TEXT) as found:
        assert sum(map(len, found.windows + found.held_out)) > FEWEST_TOKENS
        assert found.held_out
        assert not {tuple(window) for window in found.windows} & {tuple(window) for window in found.held_out}


@pytest.fixture
def off(model, recipe, tiny_dir):
    """Round by random tokens, and return how far the rounded half is from the live one."""
    path = tiny_dir / "tiny-q4_0.gguf"
    tokens = np.random.default_rng(0).integers(5, model.n_vocab, 250).tolist()

    def found(change=lambda product: product):
        quantiser = SequentialQuantiser(calibrated_matrices(read_shards(path), recipe), recipe, lambda _: None)
        halves = read_twice(model, tokens, recipe.kinds, lambda product: quantiser.take(change(product)))
        return divergence(*np.split(halves, 2))

    return found


def test_what_comes_later_makes_good_what_went_before(off, monkeypatch):
    """Less than half of the divergence is left of what there is without it."""
    mended = off()
    learnt = SequentialQuantiser._input_moments

    def uncorrected(*arguments):
        moments = learnt(*arguments)
        return moments._replace(correction=0 * moments.correction)

    monkeypatch.setattr(SequentialQuantiser, "_input_moments", uncorrected)
    assert mended < 0.5 * off()


def test_what_writes_to_the_residual_stream_makes_good_its_errors(off):
    assert off() < 0.95 * off(lambda product: product._replace(residual=None))


def test_what_a_decode_cannot_be_rounded_by(model, recipe, words, tiny_dir):
    """Rows in another order, and inputs that are not finite; the decode ends at once."""
    met = []

    def infinite(product):
        met.append(product.name)
        quantiser.take(product._replace(x=np.full_like(product.x, np.inf)))

    quantiser = SequentialQuantiser(
        calibrated_matrices(read_shards(tiny_dir / "tiny-q4_0.gguf"), recipe), recipe, lambda _: None
    )
    with pytest.raises(DecodeError, match=r"inputs of blk.0.attn_q.weight are not finite"):
        read_twice(model, words, recipe.kinds, infinite)
    assert met == ["blk.0.attn_q.weight"]

    def by_turns(product):
        quantiser.take(product._replace(x=np.stack(np.split(product.x, 2), 1).reshape(product.x.shape)))

    with pytest.raises(DecodeError, match="the rows of a batch in their order"):
        read_twice(model, words, recipe.kinds, by_turns)


def test_texts_are_packed_to_one_length():
    windows = [[i] * WINDOW for i in range(7)] + [[7] * 40]
    assert packed(windows, 64, 10**6) == windows[:7]
    assert [len(text) for text in packed(windows, 3, 10**6)] == [3 * WINDOW, 3 * WINDOW]
    assert packed(windows, 64, 3 * WINDOW)[0][0] == 0
    assert sum(map(len, packed(windows, 64, 3 * WINDOW))) <= 3 * WINDOW
    assert packed([[1, 2, 3]], 64, 10**6) == [[1, 2, 3]]


def test_the_result_is_nearer_to_the_live_adapter(tiny_dir, tiny_adapter_a, tmp_path, text):
    model, use = tiny_dir / "tiny-q4_0.gguf", {tiny_adapter_a: 1.0}
    shares = []
    text.write_text("Hello, the world was in you and all of it. " * 40, "utf-8")  # what `logits` reads
    live = logits(model, use)
    nearest = bake(model, use, tmp_path / "nearest.gguf", dtype="keep")
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


@pytest.mark.parametrize("error", [0.99, 1.0])
def test_a_change_that_drowns_in_noise_is_rounded_to_the_nearest(
    tiny_dir, tiny_adapter_a, tmp_path, text, error, caplog, monkeypatch
):
    """The measured error decides; it is given here, because that of a small change is near 1 and differs by libllama."""
    monkeypatch.setattr(Calibration, "fidelity", lambda *_: Fidelity(1.0, error))
    model, use = tiny_dir / "tiny-q4_0.gguf", {tiny_adapter_a: 0.02}
    out = bake(model, use, tmp_path / "out.gguf", calibration=text)
    drowns = error >= 1
    assert ("too small for calibration" in caplog.text) == drowns
    assert (out.read_bytes() == bake(model, use, tmp_path / "nearest.gguf").read_bytes()) == drowns


def test_fidelity_is_a_share_of_the_divergence():
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

    found = measure_fidelity(Told(base), Told(base + change), Told(base + change + noise + 5), [[1, 2, 3]])
    live, tried = softmax(base + change), softmax(base + change + noise)
    whole = (live * np.log(live / softmax(base))).sum()
    assert found.error == pytest.approx((live * np.log(live / tried)).sum() / whole, rel=0.03)
    assert found.size == pytest.approx((softmax(base) * np.log(softmax(base) / tried)).sum() / whole, rel=0.03)
    assert measure_fidelity(Told(base), Told(base), Told(base), [[1, 2]]) == (1, 0)


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
        monkeypatch.setattr(f"llamafu.baking.calibration_data.{name}", ("What is it?", "The"))
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


def test_auto_reads_the_sample_and_what_the_model_writes(model, monkeypatch):
    """Answers to every question twice, by other seeds; then plain text, then the sample."""
    for name in ("_QUESTIONS", "_OPENINGS"):
        monkeypatch.setattr(f"llamafu.baking.calibration_data.{name}", ("What is it?", "The"))
    windows = generated_windows(model, {}, 1)
    sample = text_windows(model, _SAMPLE.read_text("utf-8"))
    assert windows[6:] == sample
    assert len(sample) > 100
    assert all("What is it?" in model.detokenize(window, special=True) for window in windows[0:5:2])
    assert windows[0] != windows[2]


def test_a_source_that_shrinks_meanwhile(model, recipe, words, tiny_dir, tmp_path):
    """Its rows are never read beyond what there is."""
    path = tmp_path / "short.gguf"
    path.write_bytes((tiny_dir / "tiny-q4_0.gguf").read_bytes())
    found = calibrated_matrices(read_shards(path), recipe)
    path.write_bytes(path.read_bytes()[: found["blk.0.attn_q.weight"].entry.offset + 100])
    with pytest.raises(ModelLoadError, match=r"short.gguf changed while it was read"):
        read_twice(model, words, recipe.kinds, SequentialQuantiser(found, recipe, lambda _: None).take)
