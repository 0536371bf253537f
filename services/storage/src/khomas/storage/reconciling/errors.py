"""The errors of comparisons and incidents; their reasons are documented in error_reason.proto."""

from grpc import StatusCode

from khomas.kit.errors import DomainError


class ReconciliationNotFound(DomainError):
    """There is no such comparison."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "RECONCILIATION_NOT_FOUND"
    template = "There is no {name}; `khomas se checks` lists them."


class ReconciliationState(DomainError):
    """The comparison is in a state that forbids this."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "RECONCILIATION_STATE"
    template = "{name} is {state}."


class IncidentNotFound(DomainError):
    """There is no such incident."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "INCIDENT_NOT_FOUND"
    template = "There is no {name}; `khomas incident ls` lists them."


class RepairUnfit(DomainError):
    """What was found cannot be repaired this way."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "REPAIR_UNFIT"
    template = "{repair} does not fit {name}, which is {kind}; `khomas incident show` says what does."


class DeletionNotFound(DomainError):
    """There is no such deletion."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "DELETION_NOT_FOUND"
    template = "There is no {name}."
