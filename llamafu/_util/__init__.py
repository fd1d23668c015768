"""Small tools without a subject of their own: paths, whole files, archives, child processes."""
