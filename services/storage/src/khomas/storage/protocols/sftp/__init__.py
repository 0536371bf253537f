"""The protocol `sftp`: files behind an ssh server."""
