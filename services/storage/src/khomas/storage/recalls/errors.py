"""The errors of recalls; their reasons are documented in error_reason.proto."""

from grpc import StatusCode

from khomas.kit.errors import DomainError


class RecallNotFound(DomainError):
    """There is no such recall."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "RECALL_NOT_FOUND"
    template = "There is no {name}; `khomas recall ls` lists them."


class NotOnTape(DomainError):
    """It has no copy on tape."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "NOT_ON_TAPE"
    template = "{file} has no good copy on tape; `khomas find FILE` shows where its copies are."


class Offline(DomainError):
    """It can only be read after a recall."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "OFFLINE"
    template = "{file} is on tape at {storage_element}; bring it to disk first: khomas recall {file}"
