"""Adapters to batch and grid systems."""
