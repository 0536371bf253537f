"""The ways between StorageElements: what they carry, what they may carry, and who is next on them."""
