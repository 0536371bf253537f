"""The filter language of lists: `where('state = FAILED AND metadata.zenith > 40', FIELDS)`."""

from khomas.kit.filtering import fields
from khomas.kit.filtering.compiler import Fields, where
from khomas.kit.filtering.fields import Field
from khomas.kit.filtering.parser import MAX_COMPARISONS, comparisons, parse

__all__ = ["MAX_COMPARISONS", "Field", "Fields", "comparisons", "fields", "parse", "where"]
