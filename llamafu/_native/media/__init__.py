"""Binding to libmtmd, which turns images and sounds into rows of embeddings: found beside libllama, and proven in a child."""
