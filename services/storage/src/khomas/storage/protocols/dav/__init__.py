"""Servers of files over HTTP: WebDAV with the extensions of the grid, as far as each of them goes."""
