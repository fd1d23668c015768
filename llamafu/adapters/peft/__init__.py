"""PEFT and MLX folders: reading, converting to GGUF and back."""
