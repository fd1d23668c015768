"""The C names that Llamafu uses: the extractor keeps their declarations, the prober demands the required ones."""

from __future__ import annotations

REQUIRED = frozenset(
    """
    llama_backend_init llama_log_set llama_model_default_params llama_context_default_params
    llama_model_load_from_file llama_model_free llama_init_from_model llama_free llama_get_memory
    llama_n_ctx llama_n_batch llama_n_ubatch llama_n_seq_max llama_n_threads llama_n_threads_batch llama_pooling_type
    llama_max_parallel_sequences llama_set_embeddings llama_set_abort_callback llama_synchronize
    llama_print_system_info
    llama_model_get_vocab llama_model_n_ctx_train llama_model_n_embd llama_model_n_layer llama_model_desc llama_model_size
    llama_model_n_params llama_model_chat_template llama_model_meta_val_str llama_model_has_encoder
    llama_model_is_recurrent
    llama_vocab_n_tokens llama_vocab_bos llama_vocab_eos llama_vocab_is_eog llama_vocab_get_add_bos
    llama_tokenize llama_detokenize llama_token_to_piece llama_chat_apply_template
    llama_adapter_lora_init llama_adapter_lora_free
    llama_memory_clear llama_memory_seq_rm llama_memory_seq_cp
    llama_batch_init llama_batch_free llama_decode llama_get_logits llama_get_logits_ith llama_get_embeddings
    llama_sampler_chain_default_params llama_sampler_chain_init llama_sampler_chain_add llama_sampler_free
    llama_sampler_sample llama_sampler_apply
    llama_sampler_init_dist llama_sampler_init_top_k llama_sampler_init_top_p
    llama_sampler_init_min_p llama_sampler_init_temp
    llama_state_seq_get_size llama_state_seq_get_data llama_state_seq_set_data
    """.split()
)

SET_GENERATIONS = ("llama_set_adapters_lora", "llama_set_adapter_lora")
"""The call that makes adapters active: the newer one replaces the whole set, the older one adds to it."""

OPTIONAL = frozenset(
    """
    llama_version llama_n_ctx_seq llama_model_is_hybrid llama_model_n_embd_out
    llama_model_n_embd_inp llama_set_causal_attn
    llama_encode llama_model_has_decoder
    llama_sampler_init_xtc llama_sampler_init_top_n_sigma
    llama_set_adapters_lora llama_set_adapter_lora llama_clear_adapter_lora
    llama_adapter_lora_init_from_file_ptr
    """.split()
)

TESTED = frozenset("llama_memory_seq_pos_min llama_memory_seq_pos_max llama_sampler_init_grammar".split())
"""What only the tests call."""

GGML = frozenset(
    """
    ggml_op_name ggml_type_name ggml_tensor ggml_type ggml_op
    ggml_backend_load ggml_backend_dev_count ggml_backend_dev_get ggml_backend_dev_name ggml_backend_dev_description
    ggml_backend_dev_type ggml_backend_dev_memory
    """.split()
)

GRAPH = frozenset(
    """
    ggml_init_params ggml_init ggml_free ggml_new_tensor_1d ggml_map_custom1 ggml_custom1_op_t
    ggml_status ggml_backend_buffer_t
    ggml_backend_buft_name ggml_backend_buft_alloc_buffer ggml_backend_buft_get_alignment ggml_backend_buft_get_max_size
    ggml_backend_buft_get_alloc_size ggml_backend_buft_is_host ggml_backend_buft_get_device
    ggml_backend_buffer_free ggml_backend_buffer_get_base ggml_backend_buffer_clear ggml_backend_buffer_get_type
    ggml_backend_buffer_is_host
    ggml_backend_tensor_alloc ggml_backend_tensor_set ggml_backend_tensor_get ggml_backend_dev_supports_op
    """.split()
)
"""What the engine makes its own operations with, and where their memory lies. The same in every build, so all families share
one text of them."""

EXTRACTED = REQUIRED | OPTIONAL | TESTED | GGML | GRAPH
