"""What may follow what in the life of a job. Rules on values alone."""
