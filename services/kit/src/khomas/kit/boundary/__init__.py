"""What every call passes between the wire and its handler."""
