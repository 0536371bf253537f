"""The names that releases give: LFNs, identifiers, dataset."""

import mimetypes
from typing import Final
from urllib.parse import quote

PREFIX: Final = "releases/"
_FITS_ENDINGS: Final = (".fits.gz", ".fit.gz", ".fts.gz", ".fits.fz", ".fits", ".fit", ".fts")
_MEDIA_TYPES: Final = {".fits": "application/fits", ".vot": "application/x-votable+xml", ".yaml": "application/yaml"}


def collection_of(name: str) -> str:
    """Return "crab" of "releases/crab/1"."""
    return name.split("/")[1]


def version_of(name: str) -> str:
    """Return "1" of "releases/crab/1"."""
    return name.split("/")[2]


def folder(vo: str, name: str) -> str:
    """Return the directory of everything that a release writes."""
    return f"/{vo}/{name}"


def terms(vo: str, name: str) -> str:
    """Return the LFN of the terms of use of a release."""
    return f"{folder(vo, name)}/TERMS-OF-USE.txt"


def dataset(name: str) -> str:
    """Return the dataset that has the files of a release."""
    return f"datasets/{name}"


def file_name(lfn: str) -> str:
    """Return the last segment."""
    return lfn.rpartition("/")[2]


def stem(lfn: str) -> str:
    """Return the last segment without the endings of FITS."""
    name = file_name(lfn)
    ending = next((ending for ending in _FITS_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)] or name


def publisher_did(authority: str, release: str, lfn: str) -> str:
    """Return the IVOID of a file: the same in every version.

    A file that is no FITS file keeps its ending, so that sky.fits and sky.png are two.
    """
    return f"ivo://{authority}/{collection_of(release)}?{quote(stem(lfn), safe='._-~/')}"


def media_type(lfn: str) -> str:
    """Return the media type of a file by its name."""
    name = file_name(lfn).lower()
    if stem(name) != name:
        return "application/fits"
    known = next((kind for ending, kind in _MEDIA_TYPES.items() if name.endswith(ending)), None)
    return known or mimetypes.guess_type(name)[0] or "application/octet-stream"
