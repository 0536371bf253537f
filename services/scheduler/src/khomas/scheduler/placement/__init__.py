"""Where jobs go: backends as they are now, whose turn it is, and which of them is best."""
