"""The truth about files."""
