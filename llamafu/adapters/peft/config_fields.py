"""The fields of PEFT's `adapter_config.json`: those that are refused, those that do not matter, and those that are read."""

from __future__ import annotations

REFUSED = {
    "arrow_config": "routing between adapters; merge it into plain LoRA",
    "kasa_config": "a third factor and a base model that was cut down; train plain LoRA",
    "layer_replication": "a base model with other layers; train on the layers as they are",
    "lora_bias": "a bias after B; train without it",
    "megatron_config": "Megatron's parallel layers; save the adapter for the layers of transformers",
    "modules_to_save": "whole matrices that were trained; train LoRA on them instead, or merge them into the base model",
    "trainable_token_indices": "rows of the embeddings that were trained; merge them into the base model",
    "use_bdlora": "block-diagonal factors; train without it",
    "use_dora": "a magnitude of every row beside the factors; convert it with dora='svd' (llamafu convert --dora svd)",
    "use_qalora": "inputs that are pooled in groups; train without it",
}
"""Fields of the configuration that a GGUF adapter cannot express, and what they mean."""

HARMLESS = frozenset(
    (
        # what an adapter is called and where it comes from
        *("auto_mapping", "base_model_name_or_path", "revision", "task_type"),
        # which modules are adapted: those that have tensors in the file, and no others
        *("ensure_weight_tying", "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),
        # how it was initialised and trained
        *(
            "corda_config",
            "eva_config",
            "inference_mode",
            "loftq_config",
            "lora_dropout",
            "lora_ga_config",
            "monteclora_config",
        ),
        *("lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "qalora_group_size", "runtime_config", "velora_config"),
        # how the base model stores its matrices; PEFT keeps the factors of both kinds alike
        *("fan_in_fan_out", "megatron_core"),
    )
)
"""Fields that do not change a finished adapter's effect. Tensors that they may add to the file are judged by their names."""

READ = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_parameters"),
        *("alora_invocation_tokens", "invocation_string", "bias", "init_lora_weights", "peft_version"),
    )
)
"""Fields whose values are used or checked."""
