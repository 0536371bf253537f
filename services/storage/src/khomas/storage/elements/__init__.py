"""StorageElements: what is known of them, and their space."""
