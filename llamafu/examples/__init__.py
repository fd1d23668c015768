"""The example model and adapters of the demo, the docs and the tests."""
