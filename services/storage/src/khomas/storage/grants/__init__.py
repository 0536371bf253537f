"""Envelopes: one path, one right, minutes."""
