"""Whether StorageElements hold what the catalogue says, and what is done where they do not."""
