"""The protocol `s3`: object stores."""
