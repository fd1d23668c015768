"""Models and adapters of the Hugging Face hub: what `hf:owner/repo` means, and fetching it into the hub's own cache."""
