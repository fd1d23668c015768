struct mtmd_input_text { const char * text; bool add_special; bool parse_special; };
struct mtmd_context_params { bool use_gpu; bool print_timings; int n_threads; const char * image_marker; const char * media_marker; int flash_attn_type; bool warmup; int image_min_tokens; int image_max_tokens; };
