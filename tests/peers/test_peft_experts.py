"""Adapters of parameters that hold all experts, from both layouts of PEFT: what PEFT's own merge adds to the weights.

`make test-peers` makes the environment of the older PEFT, which borrows torch and transformers from the other one.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import dev
import numpy as np
import pytest
from helpers import expert_adapters

from llamafu.adapters import convert_peft, inspect_adapter, read_adapter
from llamafu.errors import InvalidAdapterFileError

DIFFERENCE = 1e-3


@pytest.fixture(scope="module", params=["0.18", "newest"])
def saved(request, tmp_path_factory):
    """Folder of the adapters that one PEFT saved."""
    old = request.param != "newest"
    python = os.environ.get("LLAMAFU_OLD_PEFT", dev.OLD_PEFT_PYTHON) if old else sys.executable
    root = tmp_path_factory.mktemp("peft")
    subprocess.run([python, Path(expert_adapters.__file__), root], check=True, capture_output=True, timeout=600)
    version = tuple(map(int, re.findall("[0-9]+", (root / "version").read_text())[:2]))
    assert version == (0, 18) if old else version >= (0, 21)
    return root


def changes(path):
    """Return dW of each base tensor as libllama computes it, experts in front."""
    file = read_adapter(path)
    strengths = {tensor.name: tensor.strength for tensor in file.info.tensors}
    return {name: strengths[name] * file.matrix(pair.b).astype("f8") @ file.matrix(pair.a) for name, pair in file.pairs.items()}


def wanted(folder, wide):
    """Return the changes of PEFT's merge, those that are none left out, by GGUF's names."""
    found = {}
    for name, change in np.load(folder / "changes.npz").items():
        if not change.any():
            continue
        layer = name.split(".")[2]
        parts = {"down": change}
        if name.endswith("gate_up_proj"):
            parts = {"gate": change[:, :wide], "up": change[:, wide:]}
        found |= {f"blk.{layer}.ffn_{part}_exps.weight": values for part, values in parts.items()}
    return found


@pytest.mark.parametrize("case", expert_adapters.CASES, ids=str)
def test_changes_are_those_of_pefts_merge(case, saved, tmp_path):
    kind, wide, *_ = case
    folder = expert_adapters.folder_of(saved, *case)
    convert_peft(folder, tmp_path / "out.gguf", base=saved / f"{kind}-{wide}", dtype="f32")
    found, merged = changes(tmp_path / "out.gguf"), wanted(folder, wide)
    assert found.keys() == merged.keys()
    for name, change in merged.items():
        assert np.abs(change).max() > 1
        np.testing.assert_allclose(found[name], change, rtol=0, atol=DIFFERENCE, err_msg=name)


def test_without_a_version_only_sizes_that_differ_will_do(saved, tmp_path):
    """The same folders without peft_version: a gate and up that fit both ways alone are an error, and all others convert."""
    for case in expert_adapters.CASES:
        kind, wide, order, _ = case
        folder = expert_adapters.folder_of(saved, *case)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        try:
            path.write_text(json.dumps({key: value for key, value in config.items() if key != "peft_version"}))
            if wide == 32 and order == ("gate_up_proj",):
                with pytest.raises(InvalidAdapterFileError, match="peft_version is None"):
                    convert_peft(folder, tmp_path / "out.gguf", base=saved / f"{kind}-{wide}")
            else:
                convert_peft(folder, tmp_path / "out.gguf", base=saved / f"{kind}-{wide}")
                assert inspect_adapter(tmp_path / "out.gguf").tensors
        finally:
            path.write_text(json.dumps(config))
