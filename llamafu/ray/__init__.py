"""A server of many replicas. What is here needs nothing but Llamafu itself."""
