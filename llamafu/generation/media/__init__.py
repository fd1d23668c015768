"""Images and sounds in prompts: reading them, encoding them once, and the place that each has among the tokens."""
