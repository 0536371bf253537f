"""Recalls: files brought from tape to disk, many in one request to the tape system."""
