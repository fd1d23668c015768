"""A model's config.json."""

from __future__ import annotations

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 317,
}
TWO_LAYERS = TINY | {"num_hidden_layers": 2}
