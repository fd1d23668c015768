"""Adapter files of a server: the folder, the catalog, when each was last used."""
