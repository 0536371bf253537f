"""How the filter of a stage is asked of files that arrive."""

from khomas.kit.filtering import MAX_COMPARISONS, comparisons

# The longest filter that the catalogue takes, and what one uid adds to it.
_LENGTH = 8000
_UID_LENGTH = 48


def room(filter_text: str) -> int:
    """Return how many files the catalogue can be asked about in one call, together with this filter."""
    return min((_LENGTH - len(filter_text)) // _UID_LENGTH, MAX_COMPARISONS - comparisons(filter_text))
