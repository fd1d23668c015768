"""The command line: `llamafu COMMAND`, one module for each command."""
