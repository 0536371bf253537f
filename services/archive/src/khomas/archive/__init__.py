"""Immutable releases served by Virtual Observatory standards."""
