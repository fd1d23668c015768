"""What the files of an adapter's folder are called, by PEFT and by mlx-lm."""

from __future__ import annotations

CONFIG = "adapter_config.json"
SAFETENSORS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
"""PEFT's weights; it takes the first that exists."""
MLX_WEIGHTS = "adapters.safetensors"
WEIGHTS = (SAFETENSORS, PICKLED, MLX_WEIGHTS)
"""The weights of which a folder needs one, in the order in which they are taken."""
