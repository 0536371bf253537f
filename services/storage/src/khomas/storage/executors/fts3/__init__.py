"""FTS3, the transfer service of the grid, by its REST interface."""
