"""The errors of the archive; their reasons are documented in error_reason.proto."""

from grpc import StatusCode

from khomas.kit.errors import DomainError


class ReleaseNotFound(DomainError):
    """There is no such release."""

    code = StatusCode.NOT_FOUND
    area = "archive"
    reason = "RELEASE_NOT_FOUND"
    template = "There is no {name}; list the releases to see which there are."


class ReleaseExists(DomainError):
    """The version is taken."""

    code = StatusCode.ALREADY_EXISTS
    area = "archive"
    reason = "RELEASE_EXISTS"
    template = "{name} exists already, and a version is never made twice; take the next version."


class ReleaseState(DomainError):
    """The release is not in a state for this."""

    code = StatusCode.FAILED_PRECONDITION
    area = "archive"
    reason = "RELEASE_STATE"
    template = "{name} is {state}; see why with an explanation of the release."


class MappingInvalid(DomainError):
    """A rule cannot be used."""

    code = StatusCode.INVALID_ARGUMENT
    area = "archive"
    reason = "MAPPING_INVALID"
    template = "The expression {expression} of the column {column} cannot be used."


class ExporterUnknown(DomainError):
    """No plug-in has this name."""

    code = StatusCode.INVALID_ARGUMENT
    area = "archive"
    reason = "EXPORTER_UNKNOWN"
    template = "No exporter {exporter} is installed; there are: {nearest}."


class DatasetEmpty(DomainError):
    """There is nothing to release."""

    code = StatusCode.FAILED_PRECONDITION
    area = "archive"
    reason = "DATASET_EMPTY"
    template = "{dataset} does not exist or has no files; fill it first."
