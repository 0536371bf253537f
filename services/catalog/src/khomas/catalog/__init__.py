"""The file catalogue: the truth about files."""
