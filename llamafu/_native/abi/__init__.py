"""Which layout of llama.h a library has: families, their headers and symbols; build_ffi.py writes one cffi module for each."""
