"""LoRA adapters over HTTP, for the clients that people already have. It needs the extra `server`."""
