"""Replicas that are to go: planned, removed at a rate, confirmed by the storage."""
