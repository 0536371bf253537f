"""The errors of the catalogue; their reasons are documented in error_reason.proto."""

from grpc import StatusCode

from khomas.kit.errors import DomainError


class CatalogError(DomainError):
    """What all of them have in common."""

    area = "catalog"


class FileMissing(CatalogError):
    """There is no such file."""

    code = StatusCode.NOT_FOUND
    reason = "FILE_NOT_FOUND"
    template = "There is no file {name}."


class FileExists(CatalogError):
    """The name is taken by other content."""

    code = StatusCode.ALREADY_EXISTS
    reason = "FILE_EXISTS"
    template = "{name} exists with other content or of another origin; take another name or delete it first."


class NameIsDirectory(CatalogError):
    """A name is used as a file and as a directory."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "NAME_IS_DIRECTORY"
    template = "{name} is a directory for some files and a file for others; take another name."


class MetadataKeyUndeclared(CatalogError):
    """Nobody declared this key."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "METADATA_KEY_UNDECLARED"
    template = "The metadata key {key} is not declared; declare it first, or did you mean: {nearest}?"


class MetadataType(CatalogError):
    """The value is not of the declared type."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "METADATA_TYPE"
    template = "The metadata key {key} takes a value of type {type}, not {value}."


class MetadataKeyConflict(CatalogError):
    """The key is declared in another way."""

    code = StatusCode.ALREADY_EXISTS
    reason = "METADATA_KEY_CONFLICT"
    template = "The metadata key {key} is declared with type {type} and unit '{unit}', which never change."


class DatasetMissing(CatalogError):
    """There is no such dataset."""

    code = StatusCode.NOT_FOUND
    reason = "DATASET_NOT_FOUND"
    template = "There is no {name}."


class DatasetExists(CatalogError):
    """The name is taken."""

    code = StatusCode.ALREADY_EXISTS
    reason = "DATASET_EXISTS"
    template = "{name} exists already; add files to it or take another name."


class DatasetClosed(CatalogError):
    """Its content never changes again."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "DATASET_CLOSED"
    template = "{name} is closed; make a new dataset."


class DeletionStarted(CatalogError):
    """Too late for an undo."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "DELETION_STARTED"
    template = "{name} cannot be brought back: its undo window ended at {purge_time}."


class FileInClosedDataset(CatalogError):
    """The content of a closed dataset never changes."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "FILE_IN_CLOSED_DATASET"
    template = "{name} is in {dataset}, which is closed: its files stay. Delete single copies where space is short."


class FileInUse(CatalogError):
    """Something depends on the file."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "FILE_IN_USE"
    template = "{name} is needed by {child}; delete that first, or force it."


class ParentMissing(CatalogError):
    """A file that this one was made from is not in the catalogue."""

    code = StatusCode.NOT_FOUND
    reason = "PARENT_NOT_FOUND"
    template = "{parent}, a parent of {name}, is not in the catalogue; add it first."


class ChecksumMismatch(CatalogError):
    """A copy is not of this file."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "CHECKSUM_MISMATCH"
    template = "The replica of {name} on {storage_element} differs from the file in size or checksum."


class AdoptionMissing(CatalogError):
    """There is no such adoption."""

    code = StatusCode.NOT_FOUND
    reason = "ADOPTION_NOT_FOUND"
    template = "There is no {name}."


class AdoptionState(CatalogError):
    """Not in this state."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "ADOPTION_STATE"
    template = "{name} is {state}; only an adoption that has ended can be undone, once."


class DuplicateName(CatalogError):
    """Two entries of one call have the same name."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "DUPLICATE_NAME"
    template = "{name} stands twice in this call."
