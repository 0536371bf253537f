"""Copies between StorageElements: the queue, and the mover that works on it."""
