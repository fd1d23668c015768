"""Combining adapters, against dense NumPy formulas, the independent forward pass, and numbers from PEFT.

tests/data/peft_sums.json holds `probe` of every dW that PEFT 0.21.2 makes of `golden_sources`, written by

    LLAMAFU_WRITE_GOLDENS=1 make test-peers ARGS="-k goldens_are_pefts"
"""

import json
import os

import numpy as np
import pytest
from gguf import GGUFReader
from helpers.doc_pages import ROOT, table
from helpers.hf_configs import TINY
from helpers.merge_cases import GOLDENS, NAME, OTHER, dense, golden_options, golden_sources, make, probe, summed
from helpers.peft_folders import arrays_of, base_of, write_folder

from llamafu.adapters import inspect_adapter, merge_adapters, read_adapter
from llamafu.adapters.merge.merge import form_of, merge_for_base
from llamafu.adapters.merge.methods import METHODS, MergeOptions
from llamafu.adapters.writer import write_adapter
from llamafu.cli.main import main
from llamafu.errors import InvalidAdapterFileError, LoraIncompatibleError, LoraLoadError

TOKENS = [5, 40, 77, 200, 13]


def assert_same(found, wanted, tolerance=1e-5):
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        np.testing.assert_allclose(found[name], change, atol=tolerance, rtol=0, err_msg=name)


@pytest.fixture
def pair(tmp_path):
    """Two adapters of rank 3 with different strengths."""
    return make(tmp_path / "one.gguf", seed=1), make(tmp_path / "two.gguf", seed=2, alpha=1.5)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -0.5), (-2.0, 0.0)])
def test_cat_is_the_exact_sum(tiny_adapter_a, tiny_adapter_b, tmp_path, weights):
    """Ranks 4 and 2, seven targets and two."""
    wanted = dict(zip((tiny_adapter_a, tiny_adapter_b), weights, strict=True))
    info = merge_adapters(wanted, tmp_path / "sum.gguf", method="cat")
    assert_same(dense(tmp_path / "sum.gguf"), summed(wanted))
    assert {tensor.rank for tensor in info.tensors if tensor.module in ("attn_q", "attn_v")} == {6}
    assert {tensor.rank for tensor in info.tensors if tensor.module not in ("attn_q", "attn_v")} == {4}


def test_cat_equals_applying_both(reference, tiny_adapter_a, tiny_adapter_b, tmp_path):
    merge_adapters({tiny_adapter_a: 0.8, tiny_adapter_b: -0.6}, tmp_path / "sum.gguf", method="cat")
    both = reference.logits(TOKENS, [(tiny_adapter_a, 0.8), (tiny_adapter_b, -0.6)])
    merged = reference.logits(TOKENS, [(tmp_path / "sum.gguf", 1.0)])
    assert np.abs(both - reference.logits(TOKENS)).max() > 0.1
    np.testing.assert_allclose(merged, both, atol=1e-4, rtol=0)


def test_svd_is_the_best_approximation(pair, tmp_path):
    weights = {pair[0]: 0.9, pair[1]: -1.3}
    for rank in (1, 2, 4):
        info = merge_adapters(weights, tmp_path / "svd.gguf", rank=rank)
        assert info.rank == rank
        wanted = {}
        for name, change in summed(weights).items():
            u, sizes, v = np.linalg.svd(change, full_matrices=False)
            wanted[name] = u[:, :rank] * sizes[:rank] @ v[:rank]
        assert_same(dense(tmp_path / "svd.gguf"), wanted)


def test_svd_keeps_all_where_the_rank_suffices(tiny_adapter_a, tiny_adapter_b, tmp_path):
    weights = {tiny_adapter_a: 0.5, tiny_adapter_b: 2.0}
    assert merge_adapters(weights, tmp_path / "svd.gguf", rank=100).rank == 6
    assert_same(dense(tmp_path / "svd.gguf"), summed(weights))
    assert merge_adapters(weights, tmp_path / "svd.gguf").rank == 4


def test_adapters_that_cancel_leave_nothing(pair, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(pair[0].read_bytes())
    merge_adapters({pair[0]: 1.0, copy: -1.0}, tmp_path / "none.gguf")
    assert_same(dense(tmp_path / "none.gguf"), {name: 0 * change for name, change in dense(copy).items()})


def plain(path):
    tensors = {tensor.name: np.float64(tensor.data) for tensor in GGUFReader(path).tensors}
    return {name: (tensors[name + ".lora_a"], tensors[name + ".lora_b"]) for name in (NAME, OTHER)}


def test_linear_sums_the_factors(pair, tmp_path):
    """PEFT's rule: roots of weight x strength (2 and 0.5 here), the weight's sign with A."""
    merge_adapters({pair[0]: 0.7, pair[1]: -0.4}, tmp_path / "linear.gguf", method="linear")
    one, two = np.sqrt(0.7 * 2), np.sqrt(0.4 * 0.5)
    first, second = plain(pair[0]), plain(pair[1])
    wanted = {
        name: (one * first[name][1] + two * second[name][1]) @ (one * first[name][0] - two * second[name][0]) for name in first
    }
    assert_same(dense(tmp_path / "linear.gguf"), wanted)


def kept(matrix, density):
    threshold = np.sort(np.abs(matrix).ravel())[::-1][int(density * matrix.size) - 1]
    return np.where(np.abs(matrix) >= threshold, matrix, 0)


def together(method, parts, weights, density):
    """Combine matrices by the definition, value by value."""
    parts = [kept(part, density) for part in parts]
    if not method.startswith("ties"):
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))
    result = np.zeros_like(parts[0])
    for i in np.ndindex(result.shape):
        up = sum(part[i] for part in parts) >= 0
        votes = [w * part[i] for w, part in zip(weights, parts, strict=True) if part[i] and (part[i] > 0) == up]
        result[i] = np.mean(votes) if votes else 0
    return result


def cut(change, rank):
    u, sizes, v = np.linalg.svd(change, full_matrices=False)
    return u[..., :rank] * sizes[..., None, :rank] @ v[..., :rank, :]


@pytest.mark.parametrize("second", [0.4, -0.4])
@pytest.mark.parametrize("method", ["magnitude_prune", "ties"])
def test_pruning_methods_follow_their_definition(pair, tmp_path, method, second):
    """A negative weight turns A over after the vote."""
    merge_adapters({pair[0]: 0.7, pair[1]: second}, tmp_path / "out.gguf", method=method, density=0.5)
    roots = np.sqrt(0.7 * 2), np.sqrt(0.4 * 0.5)
    signed = roots[0], np.copysign(roots[1], second)
    first, other = plain(pair[0]), plain(pair[1])
    wanted = {
        name: together(method, [b, other[name][1]], roots, 0.5) @ together(method, [a, other[name][0]], signed, 0.5)
        for name, (a, b) in first.items()
    }
    assert_same(dense(tmp_path / "out.gguf"), wanted)


@pytest.mark.parametrize("second", [0.4, -0.4])
@pytest.mark.parametrize("density", [0.001, 0.37, 1.0])
@pytest.mark.parametrize("method", ["magnitude_prune_svd", "ties_svd"])
def test_pruned_changes_follow_their_definition(tmp_path, method, density, second):
    """The whole dW is pruned and cut; ranks and targets differ, and a density may keep nothing of a small matrix."""
    one = make(tmp_path / "one.gguf", seed=1)
    two = make(tmp_path / "two.gguf", seed=2, rank=2, shapes={NAME: (20, 12), "blk.0.ffn_down.weight": (8, 9)})
    weights = {one: 0.7, two: second}
    changes = {path: dense(path) for path in weights}
    for rank in (None, 1, 50):
        merge_adapters(weights, tmp_path / "out.gguf", method=method, density=density, rank=rank)
        wanted = {}
        for name in (NAME, OTHER, "blk.0.ffn_down.weight"):
            parts = [(changes[path][name], weight) for path, weight in weights.items() if name in changes[path]]
            matrices, own = zip(*parts, strict=True)
            count = int(density * matrices[0].size)
            wanted[name] = cut(together(method, matrices, own, density), rank or 3) if count else 0 * matrices[0]
        assert_same(dense(tmp_path / "out.gguf"), wanted)


def test_equal_values_are_kept_from_the_front(tmp_path):
    """Half of the values: the one above the others, and the first of the equal ones in the order in which they lie."""
    pair = np.eye(2), np.array([[-1.0, 1], [2, 1]])
    write_adapter(tmp_path / "one.gguf", {NAME: pair}, architecture="llama", alpha=2.0, metadata={})
    merge_adapters({tmp_path / "one.gguf": 1.0}, tmp_path / "o.gguf", method="magnitude_prune_svd", density=0.5)
    np.testing.assert_allclose(dense(tmp_path / "o.gguf")[NAME], [[-1, 0], [2, 0]], atol=1e-6)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_cutting_keeps_its_digits_at_any_size(tmp_path, size):
    """Squares are taken on the way, which must neither vanish nor overflow."""
    path = make(tmp_path / "one.gguf", seed=1, size=size)
    merge_adapters({path: 1e30}, tmp_path / "out.gguf", method="magnitude_prune_svd", density=1.0, rank=2)
    wanted = {name: cut(1e30 * change, 2) for name, change in dense(path).items()}
    assert_same(
        {n: c / size**2 / 1e30 for n, c in dense(tmp_path / "out.gguf").items()},
        {n: c / size**2 / 1e30 for n, c in wanted.items()},
    )


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_dare_is_repeatable_by_seed(pair, tmp_path, method):
    def run(seed, density=0.5):
        merge_adapters(dict.fromkeys(pair, 0.5), tmp_path / "out.gguf", method=method, density=density, seed=seed)
        return dense(tmp_path / "out.gguf")[NAME]

    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))
    whole = {"dare_linear": "linear", "dare_linear_svd": "svd"}.get(method, method.removeprefix("dare_"))
    options = {"density": 1.0} if "density" in METHODS[whole].options else {}
    merge_adapters(dict.fromkeys(pair, 0.5), tmp_path / "whole.gguf", method=whole, **options)
    np.testing.assert_allclose(run(1, density=1.0), dense(tmp_path / "whole.gguf")[NAME], atol=1e-6)


def test_dare_keeps_the_mean(tmp_path):
    """A and B are drawn apart from each other, so the mean over seeds is the change itself."""
    path = make(tmp_path / "one.gguf", seed=1, shapes={NAME: (6, 5)})
    total = 0
    for seed in range(300):
        merge_adapters({path: 1.0}, tmp_path / "out.gguf", method="dare_linear", density=0.8, seed=seed)
        total = total + dense(tmp_path / "out.gguf")[NAME] / 300
    change = dense(path)[NAME]
    assert np.abs(total - change).max() < 0.2 * np.abs(change).max()


def test_dare_drops_the_share_that_it_says(tmp_path):
    """At full rank nothing is cut: a value of dW is 0, or itself divided by the density."""
    shapes = {NAME: (60, 50)}
    path = make(tmp_path / "one.gguf", seed=1, shapes=shapes)
    merge_adapters({path: 1.0}, tmp_path / "out.gguf", method="dare_linear_svd", density=0.3, rank=50, seed=5)
    change, found = dense(path)[NAME], dense(tmp_path / "out.gguf")[NAME]
    kept_here = np.abs(found) > np.abs(change)
    assert abs(kept_here.mean() - 0.3) < 0.03  # 3.6 standard deviations
    np.testing.assert_allclose(found, np.where(kept_here, change / 0.3, 0), atol=1e-5)


SVDS = ["magnitude_prune_svd", "ties_svd", "dare_linear_svd", "dare_ties_svd"]


@pytest.mark.parametrize("method", ["magnitude_prune", "ties", *SVDS])
def test_experts_are_pruned_one_by_one(tmp_path, method):
    """A stack gives what its experts give as matrices of their own, in turn; the second is far larger."""
    random = np.random.default_rng(3)
    sizes = np.array([1.0, 100.0])[:, None, None]
    stacks = [(sizes * random.standard_normal((2, 3, 7)), sizes * random.standard_normal((2, 8, 3))) for _ in range(2)]
    options = {"method": method, "density": 0.5} | ({"seed": 4} if "seed" in METHODS[method].options else {})
    common = {"architecture": "llama", "alpha": 3.0, "metadata": {}}
    name = "blk.0.ffn_up_exps.weight"
    for number, (a, b) in enumerate(stacks):
        write_adapter(tmp_path / f"stack{number}.gguf", {name: (a, b)}, **common)
        singles = {f"blk.{expert}.ffn_up.weight": (a[expert], b[expert]) for expert in range(2)}
        write_adapter(tmp_path / f"single{number}.gguf", singles, **common)
    merge_adapters({tmp_path / f"stack{number}.gguf": 0.6 - number for number in range(2)}, tmp_path / "a.gguf", **options)
    merge_adapters({tmp_path / f"single{number}.gguf": 0.6 - number for number in range(2)}, tmp_path / "b.gguf", **options)
    stack, singles = dense(tmp_path / "a.gguf")[name], dense(tmp_path / "b.gguf")
    assert np.abs(stack[0]).max() > 0.1
    for expert in range(2):
        single = singles[f"blk.{expert}.ffn_up.weight"]
        np.testing.assert_allclose(stack[expert], single, atol=1e-5 * np.abs(single).max())


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_embeddings_and_experts(tmp_path, method):
    """Token embeddings lie transposed in the file, experts have a dimension more."""
    shapes = {"token_embd.weight": (10, 30), "blk.0.ffn_up_exps.weight": (4, 8, 7)}
    weights = {make(tmp_path / f"{seed}.gguf", seed=seed, shapes=shapes): 0.5 + seed for seed in (1, 2)}
    options = {"rank": 6} if method == "svd" else {}
    merge_adapters(weights, tmp_path / "out.gguf", method=method, **options)
    assert_same(dense(tmp_path / "out.gguf"), summed(weights))


def test_same_arguments_same_bytes_and_origin(pair, tmp_path):
    for name in ("x.gguf", "y.gguf"):
        merge_adapters({pair[0]: 0.1, pair[1]: 0.9}, tmp_path / name, rank=2)
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
    metadata = inspect_adapter(tmp_path / "x.gguf").metadata
    assert metadata["llamafu.merge.method"] == "svd"
    assert metadata["llamafu.merge.names"] == ("one", "two")
    assert metadata["llamafu.merge.weights"] == (0.1, 0.9)
    assert metadata["llamafu.merge.digests"] == tuple(read_adapter(path).digest for path in pair)
    assert metadata["llamafu.merge.rank"] == 2


def test_f16_is_left_where_it_loses_the_change(tmp_path):
    """Weights that make the factors too small for F16: the result is F32, and has the change."""
    source = make(tmp_path / "a.gguf", seed=1, dtype="F16")
    info = merge_adapters({source: 1e-12}, tmp_path / "small.gguf")
    assert {tensor.dtype for tensor in info.tensors} == {"F32"}
    assert 0 < info.metadata["llamafu.merge.lost"] < 1e-6
    for name, change in dense(source).items():
        found = dense(tmp_path / "small.gguf")[name]
        assert np.linalg.norm(found - 1e-12 * change) < 1e-3 * np.linalg.norm(1e-12 * change)
    info = merge_adapters({source: 0.5}, tmp_path / "half.gguf")
    assert {tensor.dtype for tensor in info.tensors} == {"F16"}
    true = max(
        np.linalg.norm(dense(tmp_path / "half.gguf")[name] - 0.5 * change) / np.linalg.norm(0.5 * change)
        for name, change in dense(source).items()
    )
    assert info.metadata["llamafu.merge.lost"] == pytest.approx(true, rel=0.3)


def test_f16_stays_f16_while_it_fits(tmp_path):
    small = make(tmp_path / "small.gguf", seed=1, dtype="F16")
    wide = make(tmp_path / "wide.gguf", seed=2)
    types = [merge_adapters(dict.fromkeys(w, 1.0), tmp_path / "o.gguf").tensors[0].dtype for w in ([small], [small, wide])]
    types.append(merge_adapters({small: 1e12}, tmp_path / "o.gguf").tensors[0].dtype)
    assert types == ["F16", "F32", "F32"]


def test_an_f16_folder_is_merged_as_f16(tmp_path):
    """Into a file, whatever the case of its name's end."""
    arrays = {name: array.astype("f2") for name, array in arrays_of().items()}
    folder = write_folder(tmp_path / "x", arrays)
    output = tmp_path / "o.GGUF"
    info = merge_for_base({folder: 0.7}, output, MergeOptions(), base=base_of(), form=form_of(output))
    assert {tensor.dtype for tensor in info.tensors} == {"F16"}
    assert inspect_adapter(tmp_path / "o.GGUF").digest == info.digest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "best"}, "no method 'best'; there are cat, linear, svd, ties, ties_svd, dare_linear, dare_ties, "),
        ({"method": "ties_svd"}, "density is None"),
        ({"method": "dare_ties_svd", "density": 0.0}, "density is 0.0"),
        ({"method": "magnitude_prune_svd", "density": 0.5, "rank": 0}, "rank is 0"),
        ({"method": "magnitude_prune_svd", "density": 0.5, "seed": 1}, "seed=1 does nothing"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 1 << 31}, "rank is 2147483648; it must be at least 1 and below"),
        ({"method": "cat", "rank": 4}, "it is for svd, ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd"),
        ({"density": 0.5}, "does nothing in the method 'svd'"),
        ({"seed": 1}, "does nothing in the method 'svd'"),
        ({"method": "dare_ties", "density": 0.5, "seed": -1}, "seed is -1"),
        ({"method": "dare_ties", "density": 0.5, "seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"method": "ties"}, "density is None"),
        ({"method": "ties", "density": 1.5}, "density is 1.5"),
        ({"method": "ties", "density": float("nan")}, "density is nan"),
    ],
)
def test_wrong_options(pair, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        merge_adapters(dict.fromkeys(pair, 1.0), tmp_path / "out.gguf", **options)
    assert not (tmp_path / "out.gguf").exists()


def test_what_cannot_be_merged(pair, tiny_dir, tiny_adapter_a, tiny_adapter_b, tmp_path):
    """One clear error each, and nothing is left behind."""
    other = make(tmp_path / "other.gguf", seed=3, architecture="qwen2")
    bent = make(tmp_path / "bent.gguf", seed=3, shapes={NAME: (20, 13)})
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(pair[0].read_bytes()[:-100])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    out = tmp_path / "out.gguf"
    for adapters, method, kind, words in (
        ({}, "svd", ValueError, "no adapter"),
        ([pair[0]], "svd", TypeError, "is no mapping; give {path: weight}"),
        ({pair[0]: "1"}, "svd", TypeError, "has '1' for .*, which is no number"),
        ({pair[0]: float("nan")}, "svd", ValueError, "is nan"),
        ({pair[0]: 1.0, other: 1.0}, "svd", LoraIncompatibleError, "qwen2"),
        ({pair[0]: 1.0, bent: 1.0}, "svd", LoraIncompatibleError, r"\[20, 13\]"),
        ({tiny_adapter_a: 1.0, tiny_adapter_b: 1.0}, "linear", LoraIncompatibleError, r"ranks \[2, 4\]"),
        ({tiny_dir / "alora.gguf": 1.0}, "cat", LoraIncompatibleError, "aLoRA"),
        ({damaged: 1.0}, "cat", InvalidAdapterFileError, "truncated"),
        ({tmp_path / "absent.gguf": 1.0}, "cat", LoraLoadError, "no such adapter file"),
        ({pair[0]: -1e300}, "cat", ValueError, "at most 1e.30 either way"),
    ):
        with pytest.raises(kind, match=words):
            merge_adapters(adapters, out, method=method)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(InvalidAdapterFileError, match="out.gguf.*infinite"):
        make(out, seed=1, size=1e40)
    with pytest.raises(ValueError, match="one of the adapters"):
        merge_adapters(dict.fromkeys(pair, 1.0), pair[1])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        merge_adapters(dict.fromkeys(pair, 1.0), tmp_path / "nowhere" / "out.gguf")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_old_file(pair, tmp_path, monkeypatch):
    out = make(tmp_path / "out.gguf", seed=9)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        merge_adapters(dict.fromkeys(pair, 1.0), out)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failed_write_names_the_output(pair, tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    for name in ("out.gguf", "/proc/out.gguf"):
        out = tmp_path / name  # an absolute name stands for itself
        assert main(["merge", str(pair[0]), "-o", str(out)]) == 1
        error = capsys.readouterr().err
        assert error.endswith(f": '{out}'\n")
        assert ("No space left on device" in error) == (name == "out.gguf")


def test_command(pair, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    sources = [f"{pair[0]}=0.7", f"{pair[1]}=-0.3"]
    assert main(["merge", *sources, "-o", str(out), "--rank", "2"]) == 0
    digest = inspect_adapter(out).digest
    lost = "F32: the largest loss of a tensor's change is less than 0.001 %"
    assert capsys.readouterr().out == f"{out}: rank 2, 2 tensors, digest {digest[:12]}, {lost}\n"
    assert main(["merge", *sources, "-o", str(out), "--rank", "1"]) == 1
    assert "exists and is not replaced" in capsys.readouterr().err
    assert inspect_adapter(out).digest == digest
    merge_adapters({pair[0]: 0.7, pair[1]: -0.3}, out, rank=2)
    assert inspect_adapter(out).digest == digest
    for wrong in (["--method", "best"], ["--method", "ties"], ["--rank", "0"], [str(pair[0])]):
        assert main(["merge", *sources, "-o", str(out), "--force", *wrong]) == 2
    assert main(["merge", str(tmp_path / "absent.gguf"), "-o", str(out)]) == 1


def test_what_is_read_is_never_replaced(tiny_model, tiny_adapter_a, tmp_path, capsys):
    """Neither the base model, by any name, nor a file of a source's folder, be it a link; by none of the verbs that write."""
    base = tmp_path / "base.gguf"
    base.write_bytes(tiny_model.read_bytes())
    (tmp_path / "link.gguf").hardlink_to(base)
    folder, hub = write_folder(tmp_path / "P", arrays_of()), tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    (hub / "model.safetensors").write_bytes(b"weights")
    (folder / "adapter_model.safetensors").rename(tmp_path / "blob.gguf")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "blob.gguf")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    gguf = ["--format", "gguf"]
    for words, status in (
        (["merge", folder, "--base", base, "-o", base], 2),
        (["merge", folder, tiny_adapter_a, "--base", base, "-o", tmp_path / "link.gguf"], 2),
        (["merge", folder, "--base", base, *gguf, "-o", folder / "adapter_model.safetensors"], 2),
        (["merge", folder, "--base", base, *gguf, "-o", folder / "new.gguf"], 2),
        (["merge", folder, "--base", base, "-o", tmp_path / "blob.gguf"], 2),
        (["merge", folder, "--base", hub, *gguf, "-o", hub / "config.json"], 2),
        (["convert", folder, "--base", base, "-o", base], 1),
        (["convert", folder, "--base", base, "-o", tmp_path / "blob.gguf"], 1),
        (["convert", folder, "--base", hub, "-o", hub / "model.safetensors"], 1),
        (["convert", folder, "--base", hub, "-o", hub / "config.json"], 1),
        (["inspect", tiny_adapter_a, "--plot", tmp_path / "P.png"], 2),
    ):
        if words[0] == "inspect":
            (tmp_path / "P.png").write_bytes(tiny_adapter_a.read_bytes())
            before[tmp_path / "P.png"] = tiny_adapter_a.read_bytes()
            words[1] = words[-1]
        assert main([*map(str, words), "--force"]) == status, words
        error = capsys.readouterr().err
        assert "that are read" in error or "lies in the folder" in error
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_only_files_are_replaced(tiny_model, tiny_adapter_a, tmp_path, capsys):
    folder, pipe = write_folder(tmp_path / "P", arrays_of()), tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    (tmp_path / "to.gguf").symlink_to(pipe)
    (tmp_path / "folder.gguf").mkdir()
    for verb in (
        ["convert", folder, "--base", tiny_model],
        ["merge", tiny_adapter_a],
        ["bake", "-m", tiny_model, "--lora", tiny_adapter_a],
    ):
        for name, words in (("pipe", "no regular file"), ("to", "no regular file"), ("folder", "name of a file")):
            for force in ([], ["--force"]):
                assert main([*map(str, verb), "-o", str(tmp_path / f"{name}.gguf"), *force]) == 1
                assert words in capsys.readouterr().err
    assert pipe.is_fifo()


# -- PEFT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_what_peft_gives(method, tmp_path):
    options = {"seed": 7 if "seed" in METHODS[method].options else None} | golden_options(method)
    sources, base = golden_sources(tmp_path), base_of("qwen2")
    info = merge_for_base(sources, tmp_path / "out.gguf", MergeOptions(method=method, **options), base=base, form="gguf")
    assert info.rank == (8 if method == "cat" else 4)
    wanted = json.loads(GOLDENS.read_text("utf-8"))[method]
    found = {name: probe(change) for name, change in dense(tmp_path / "out.gguf").items()}
    assert found.keys() == wanted.keys()
    for name, numbers in wanted.items():
        assert found[name] == pytest.approx(numbers, rel=1e-4), name


def test_every_method_runs(pair, tmp_path):
    """The table of methods lists what works."""
    for method, properties in METHODS.items():
        chosen = {"density": 0.5} if "density" in properties.options else {}
        assert merge_adapters(dict.fromkeys(pair, 0.5), tmp_path / "o.gguf", method=method, **chosen).rank in (3, 6)


def test_the_page_lists_every_method_with_its_options():
    rows = {method: options for method, _, _, options in table(ROOT / "docs" / "combining.md", "Method")}
    assert rows == {name: ", ".join(sorted(method.options)) for name, method in METHODS.items()}
