"""Trees of files that are there already."""
