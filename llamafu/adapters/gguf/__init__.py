"""GGUF files: reading, writing, tensor types, shards."""
