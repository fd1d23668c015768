"""What libllama's graph is made of, seen through the evaluation callback."""
