"""The errors of the storage; their reasons are documented in error_reason.proto."""

from grpc import StatusCode

from khomas.kit.errors import DomainError


class StorageElementNotFound(DomainError):
    """There is no such StorageElement."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "STORAGE_ELEMENT_NOT_FOUND"
    template = "There is no StorageElement {storage_element}; did you mean: {nearest}?"


class StorageElementExists(DomainError):
    """The id is taken."""

    code = StatusCode.ALREADY_EXISTS
    area = "storage"
    reason = "STORAGE_ELEMENT_EXISTS"
    template = "The StorageElement {storage_element} exists already; take another id or update it."


class StorageElementNotEmpty(DomainError):
    """Something is there, is going there or is wanted there."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "STORAGE_ELEMENT_NOT_EMPTY"
    template = (
        "The StorageElement {storage_element} is not empty: {file_count} files are known there; uploads, transfers, "
        "deletions and copies of rules count, too. Drain it first: khomas se drain."
    )


class StorageElementReadOnly(DomainError):
    """New files are not taken there."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "STORAGE_ELEMENT_READ_ONLY"
    template = "The StorageElement {storage_element} is read-only; choose another one."


class StorageElementUnreachable(DomainError):
    """The storage system does not answer."""

    code = StatusCode.UNAVAILABLE
    area = "storage"
    reason = "STORAGE_ELEMENT_UNREACHABLE"
    template = "The StorageElement {storage_element} does not answer: {message}"


class ProtocolUnknown(DomainError):
    """No plug-in speaks this protocol."""

    code = StatusCode.INVALID_ARGUMENT
    area = "storage"
    reason = "PROTOCOL_UNKNOWN"
    template = "No plug-in for the protocol {protocol} is installed; there are: {nearest}."


class AddressInvalid(DomainError):
    """The address cannot be used as it is."""

    code = StatusCode.INVALID_ARGUMENT
    area = "storage"
    reason = "ADDRESS_INVALID"
    template = "The address {address} cannot be used: it must be an absolute path of an existing folder."


class UploadNotFound(DomainError):
    """There is no such upload."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "UPLOAD_NOT_FOUND"
    template = "There is no {name}; open an upload first."


class UploadState(DomainError):
    """Committed or abandoned already."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "UPLOAD_STATE"
    template = "{name} is {state} and takes nothing any more; open a new upload."


class UploadIncomplete(DomainError):
    """A file of the upload has not arrived."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "UPLOAD_INCOMPLETE"
    template = "File {index} of {name} has not arrived; PUT it, then commit again."


class ChecksumMismatch(DomainError):
    """What arrived is not what was announced."""

    code = StatusCode.DATA_LOSS
    area = "storage"
    reason = "CHECKSUM_MISMATCH"
    template = "File {index} of {name} arrived as {received} where {expected} was announced; PUT it again."


class NoSpace(DomainError):
    """None of the wanted StorageElements has the space."""

    code = StatusCode.RESOURCE_EXHAUSTED
    area = "storage"
    reason = "NO_SPACE"
    template = "The StorageElement {storage_element} has {free_bytes} bytes free; that is not enough."


class NoReplica(DomainError):
    """The file has no copy that can be read."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "NO_REPLICA"
    template = "{file} has no available replica; `khomas find FILE` shows the state of its copies."


class TransferNotFound(DomainError):
    """There is no such transfer."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "TRANSFER_NOT_FOUND"
    template = "There is no {name}."


class TransferState(DomainError):
    """The transfer is in a state that forbids this."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "TRANSFER_STATE"
    template = "{name} is {state}."


class PathRefused(DomainError):
    """A path with an odd segment."""

    code = StatusCode.INVALID_ARGUMENT
    area = "storage"
    reason = "PATH_REFUSED"
    template = "The path {path} is refused: no empty, '.', '..' or escaped segments, nothing outside the root."


class PathNotFound(DomainError):
    """The path does not exist on the StorageElement."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "PATH_NOT_FOUND"
    template = "There is no {path} on the StorageElement {storage_element}."


class GrantRefused(DomainError):
    """The grant is expired, forged or for another path."""

    code = StatusCode.UNAUTHENTICATED
    area = "storage"
    reason = "GRANT_REFUSED"
    template = "The grant has expired or is for another path; ask for a new one."


class ExpressionInvalid(DomainError):
    """A placement expression cannot be read, or matches nothing."""

    code = StatusCode.INVALID_ARGUMENT
    area = "storage"
    reason = "EXPRESSION_INVALID"
    template = "The expression cannot be used: at position {position}, {problem}."


class TooFewElements(DomainError):
    """Fewer StorageElements match than copies are wanted."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "TOO_FEW_ELEMENTS"
    template = "{copies} copies are wanted and {expression} matches {matching} StorageElements; widen it or want fewer."


class RuleNotFound(DomainError):
    """There is no such rule."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "RULE_NOT_FOUND"
    template = "There is no {name}; `khomas rule ls` lists rules."


class RuleForeign(DomainError):
    """The rule is somebody else's."""

    code = StatusCode.PERMISSION_DENIED
    area = "storage"
    reason = "RULE_FOREIGN"
    template = "{name} belongs to {owner}; ask them or an operator."


class ReplicaNeeded(DomainError):
    """A rule protects the replica."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "REPLICA_NEEDED"
    template = "{rule} keeps the copy of {file} on {storage_element}; end or change that rule first."


class LastReplica(DomainError):
    """No other good replica of the file is known."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "LAST_REPLICA"
    template = (
        "The copy of {file} on {storage_element} is the last good one; make another copy first, or delete the file."
    )


class PolicyNotFound(DomainError):
    """There is no such policy."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "POLICY_NOT_FOUND"
    template = "There is no {name}; `khomas policy ls` lists them."


class PolicyExists(DomainError):
    """The id is taken."""

    code = StatusCode.ALREADY_EXISTS
    area = "storage"
    reason = "POLICY_EXISTS"
    template = "{name} exists already; take another id or delete it."


class DrainNotFound(DomainError):
    """The StorageElement is not being drained."""

    code = StatusCode.NOT_FOUND
    area = "storage"
    reason = "DRAIN_NOT_FOUND"
    template = "There is no {name}; `khomas se drain` begins one."


class DrainState(DomainError):
    """The drain is at its end."""

    code = StatusCode.FAILED_PRECONDITION
    area = "storage"
    reason = "DRAIN_STATE"
    template = "{name} is {state}; that cannot be taken back."
