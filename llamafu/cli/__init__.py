"""The terminal face: `llamafu COMMAND`."""
