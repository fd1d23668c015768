"""The converter against upstream's `convert_lora_to_gguf.py`: the same tensors, bit for bit at F16.

Upstream's honours neither rsLoRA nor patterns, so plain adapters are compared, of every architecture in the table.
"""

import os
import subprocess
import sys

import pytest
from helpers.model_folders import GOLDENS, MODELS, base_of, tensor_digest, write_model_folder
from tiny_hf import make_model

from llamafu.adapters import convert_peft


def convert_upstream(upstream, kind, folder, room):
    """Run upstream's converter on a PEFT folder for a tiny model of `kind`; return the file."""
    model = make_model(kind)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(room / "base")
    command = [sys.executable, upstream / "convert_lora_to_gguf.py", "--base", room / "base", "--outtype", "f16"]
    environment = {key: value for key, value in os.environ.items() if key != "NO_LOCAL_GGUF"}
    done = subprocess.run(
        [*command, "--outfile", room / "upstream.gguf", folder], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return room / "upstream.gguf"


@pytest.mark.parametrize("kind", MODELS)
def test_tensors_are_upstreams(kind, upstream, tmp_path):
    folder = write_model_folder(kind, tmp_path / "folder")
    theirs = tensor_digest(convert_upstream(upstream, kind, folder, tmp_path))
    convert_peft(folder, tmp_path / "ours.gguf", base=base_of(kind))
    assert tensor_digest(tmp_path / "ours.gguf") == theirs
    assert theirs == GOLDENS[kind], f"the golden of {kind} is not what upstream makes"
