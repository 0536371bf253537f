"""The `khomas` command."""
