"""The truth about why and from what."""
