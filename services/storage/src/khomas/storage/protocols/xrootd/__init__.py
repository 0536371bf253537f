"""The protocol `root`: XRootD servers."""
