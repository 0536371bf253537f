"""The walk from a thing to what it came from and to what came of it."""
