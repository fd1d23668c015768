struct mtmd_input_text { const char * text; bool add_special; bool parse_special; };
struct mtmd_context_params { bool use_gpu; bool print_timings; int n_threads; int verbosity; const char * image_marker; const char * media_marker; };
