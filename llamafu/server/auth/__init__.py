"""Keys: who may call which route."""
