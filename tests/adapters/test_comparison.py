"""Comparing adapters, against the cosine of dense matrices."""

import json

import numpy as np
import pytest
from helpers.merge_cases import NAME, OTHER, dense, make

from llamafu.adapters import compare_adapters, inspect_adapter, merge_adapters
from llamafu.adapters.info import split_name
from llamafu.cli.main import main
from llamafu.errors import LoraIncompatibleError


def cosines(paths, module=None):
    """The same matrix from the dense changes, flattened into one vector for each adapter."""
    changes = [dense(path) for path in paths]
    sizes = {name: change.size for one in changes for name, change in one.items()}
    wanted = [name for name in sizes if module in (None, split_name(name)[0])]
    vectors = [np.concatenate([one[n].ravel() if n in one else np.zeros(sizes[n]) for n in wanted]) for one in changes]
    norms = [np.linalg.norm(vector) or 1.0 for vector in vectors]
    return np.array(
        [[x @ y / (n * m) for y, m in zip(vectors, norms, strict=True)] for x, n in zip(vectors, norms, strict=True)]
    )


def test_cosines_equal_dense_ones(tiny_dir, tiny_adapter_a, tiny_adapter_b):
    """Ranks 4, 2 and 8, strengths 2, 0.5 and 2, different targets."""
    paths = [tiny_adapter_a, tiny_adapter_b, tiny_dir / "wide.gguf"]
    comparison = compare_adapters(paths)
    assert comparison.names == ["a", "b", "wide"]
    np.testing.assert_allclose(comparison.overall, cosines(paths), atol=1e-5)
    assert list(comparison.by_module) == sorted({split_name(name)[0] for name in dense(tiny_adapter_a)})
    for module, found in comparison.by_module.items():
        np.testing.assert_allclose(found, cosines(paths, module), atol=1e-5, err_msg=module)
    assert comparison.by_module["ffn_up"][1].tolist() == [0, 0, 0]


def test_strength_counts(tmp_path):
    """Tensors of different ranks weigh differently in the sum over all: alpha / rank is part of the change."""
    shapes = {NAME: (20, 12), OTHER: (9, 14)}
    one = make(tmp_path / "one.gguf", seed=1, rank=2, alpha=16.0, shapes={NAME: (20, 12)})
    two = make(tmp_path / "two.gguf", seed=2, rank=8, alpha=16.0, shapes=shapes)
    three = tmp_path / "three.gguf"
    merge_adapters({one: 1.0, two: 1.0}, three, method="cat")
    assert len({tensor.strength for tensor in inspect_adapter(three).tensors}) == 2
    np.testing.assert_allclose(compare_adapters([one, two, three]).overall, cosines([one, two, three]), atol=1e-5)


def test_known_answers(tmp_path):
    shapes = {"token_embd.weight": (10, 30), "blk.0.ffn_up_exps.weight": (4, 8, 7)}
    one = make(tmp_path / "one.gguf", seed=1, shapes=shapes)
    merge_adapters({one: -3.0}, tmp_path / "against.gguf", method="cat")
    merge_adapters({one: 0.0}, tmp_path / "nothing.gguf", method="cat")
    found = compare_adapters([one, tmp_path / "against.gguf", tmp_path / "nothing.gguf"]).overall
    np.testing.assert_allclose(found, [[1, -1, 0], [-1, 1, 0], [0, 0, 0]], atol=1e-6)


def test_equal_stems_are_told_apart(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [make(tmp_path / "one.gguf", seed=1), make(tmp_path / "x" / "one.gguf", seed=2)]
    assert compare_adapters(paths).names == [str(path) for path in paths]


def test_what_cannot_be_compared(tmp_path):
    one = make(tmp_path / "one.gguf", seed=1)
    with pytest.raises(ValueError, match="at least two adapters, not 1"):
        compare_adapters([one])
    with pytest.raises(TypeError, match="is one path; give a list of two or more"):
        compare_adapters(one)
    other = make(tmp_path / "other.gguf", seed=1, shapes={NAME: (21, 12), OTHER: (9, 15)})
    with pytest.raises(LoraIncompatibleError, match="not for the same base model") as caught:
        compare_adapters([one, other])
    assert len(caught.value.problems) == 2


def test_command(tiny_adapter_a, tiny_adapter_b, capsys):
    paths = [str(tiny_adapter_a), str(tiny_adapter_b)]
    assert main(["compare", *paths, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    comparison = compare_adapters(paths)
    assert report["names"] == comparison.names
    assert report["overall"] == comparison.overall.tolist()
    assert report["by_module"] == {module: found.tolist() for module, found in comparison.by_module.items()}
    assert main(["compare", *paths]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("all tensors\n")
    assert f"{comparison.overall[0, 1]:.3f}" in shown
    assert main(["compare", paths[0]]) == 2
