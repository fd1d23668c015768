"""Finding, checking, installing and building a libllama."""
