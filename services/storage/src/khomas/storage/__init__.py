"""The truth about bytes."""
