"""Who may ask: keys and their file."""
