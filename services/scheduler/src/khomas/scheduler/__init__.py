"""The truth about jobs."""
