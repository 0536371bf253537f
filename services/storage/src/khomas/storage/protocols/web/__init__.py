"""Plain web servers: files to be read, and listings where the server makes them."""
