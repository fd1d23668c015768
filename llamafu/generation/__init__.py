"""What every generation needs, whoever computes it: options, sampling, grammars, chat templates, stop strings."""
