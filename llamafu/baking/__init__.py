"""Adapters made part of a model's weights, quantised anew where the model is."""
