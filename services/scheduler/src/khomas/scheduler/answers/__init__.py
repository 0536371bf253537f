"""The calls that read."""
