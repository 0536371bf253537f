"""What the database knows of jobs: set-based statements in transactions of the caller."""
