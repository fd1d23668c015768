"""Folders of DoRA adapters."""

from __future__ import annotations

import numpy as np

from helpers.peft_folders import SIZES, write_folder

SUFFIXES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
"""As older and newer releases of PEFT save it."""


def magnitudes(arrays, seed=5):
    """Lengths for the rows of every module, by its full name."""
    random = np.random.default_rng(seed)
    modules = [key.removesuffix(".lora_A.weight") for key in arrays if key.endswith("lora_A.weight")]
    return {module: random.uniform(0.5, 2, SIZES[module.split(".", 5)[5]][2]).astype("f4") for module in modules}


def dora_folder(folder, arrays, suffix=SUFFIXES[0], **config):
    lengths = {module + suffix: length for module, length in magnitudes(arrays).items()}
    return write_folder(folder, arrays | lengths, use_dora=True, **config)
