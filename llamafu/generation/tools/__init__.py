"""Tools: the forms in which model families write calls and reasoning, how these are read, and grammars that hold to them."""
