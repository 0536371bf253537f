"""Whether StorageElements do what they should, tried with small files."""
