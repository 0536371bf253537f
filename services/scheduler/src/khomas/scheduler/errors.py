"""The errors of the scheduler; their reasons are documented in error_reason.proto."""

from grpc import StatusCode

from khomas.kit.errors import DomainError


class JobNotFound(DomainError):
    """There is no such job."""

    code = StatusCode.NOT_FOUND
    area = "scheduler"
    reason = "JOB_NOT_FOUND"
    template = "There is no {name}; `khomas ls` shows your jobs."


class BackendUnknown(DomainError):
    """The placement names a backend that is not configured."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "BACKEND_UNKNOWN"
    template = "There is no backend {backend}; there are: {nearest}."


class BackendNotFound(DomainError):
    """There is no such backend."""

    code = StatusCode.NOT_FOUND
    area = "scheduler"
    reason = "BACKEND_NOT_FOUND"
    template = "There is no {name}; there are: {nearest}."


class NoMatch(DomainError):
    """No backend fits what the job needs."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "NO_MATCH"
    template = "No backend fits: {needed}; ask for less or for another place."


class NativeOptionUnknown(DomainError):
    """A native option that no backend knows."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "NATIVE_OPTION_UNKNOWN"
    template = "Backends of kind {backend} do not know the option {option}; they know: {nearest}."


class ExpressionInvalid(DomainError):
    """An expression or a "{key}" cannot be computed."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "EXPRESSION_INVALID"
    template = "The expression {expression} is wrong at position {position}."


class TooManyJobs(DomainError):
    """The splitter makes more jobs than allowed."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "TOO_MANY_JOBS"
    template = "The splitter makes {jobs} jobs, max_jobs is {max_jobs}; split coarser or raise it."


class NoJobs(DomainError):
    """The splitter makes no job."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "NO_JOBS"
    template = "The splitter makes no job: an axis is empty, its filter keeps no point, or no input file matches."


class InputNotFound(DomainError):
    """An input is not in the catalogue."""

    code = StatusCode.FAILED_PRECONDITION
    area = "scheduler"
    reason = "INPUT_NOT_FOUND"
    template = "The input {input} is not in the catalogue; register it first, or depend on the job that makes it."


class SandboxNotFound(DomainError):
    """The content of a sandbox file was never uploaded."""

    code = StatusCode.FAILED_PRECONDITION
    area = "scheduler"
    reason = "SANDBOX_NOT_FOUND"
    template = "The content {sha256} is not stored; upload it with BatchCreateSandboxes first."


class SandboxMissing(SandboxNotFound):
    """The content that is to be read is not stored."""

    code = StatusCode.NOT_FOUND
    template = "The content {sha256} is not stored."


class SandboxMismatch(DomainError):
    """The content does not have its SHA-256."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "SANDBOX_MISMATCH"
    template = "The content does not have the SHA-256 {sha256}; send it again."


class DependencyInvalid(DomainError):
    """A dependency that does not exist, or can never be kept."""

    code = StatusCode.FAILED_PRECONDITION
    area = "scheduler"
    reason = "DEPENDENCY_INVALID"
    template = "There is no {job} to depend on."


class JobStateForbids(DomainError):
    """The state of the job does not allow this."""

    code = StatusCode.FAILED_PRECONDITION
    area = "scheduler"
    reason = "JOB_STATE"
    template = "{name} is {state}; only jobs that FAILED or were CANCELLED can be tried again."


class LogNotFound(DomainError):
    """Nothing was printed, or the log is gone."""

    code = StatusCode.NOT_FOUND
    area = "scheduler"
    reason = "LOG_NOT_FOUND"
    template = "{name} has no {stream}: it has not started, or its log is no longer kept."


class AttemptNotFound(DomainError):
    """The job has no such attempt."""

    code = StatusCode.NOT_FOUND
    area = "scheduler"
    reason = "ATTEMPT_NOT_FOUND"
    template = "{name} has no attempt {attempt}; `khomas show` lists its attempts."


class InputPathConflict(DomainError):
    """Two files would lie at the same path in the work directory."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "INPUT_PATH_CONFLICT"
    template = "Two inputs would lie at {path}; give one of them another path, or a directory such as `inputs/`."


class ShareUnknown(DomainError):
    """The account is not set up, or not for the caller."""

    code = StatusCode.INVALID_ARGUMENT
    area = "scheduler"
    reason = "SHARE_UNKNOWN"
    template = "You have no account {share}; you have: {nearest}. `khomas shares` lists all."


class QuotaExceeded(DomainError):
    """More jobs would wait than the account may have."""

    code = StatusCode.RESOURCE_EXHAUSTED
    area = "scheduler"
    reason = "QUOTA_EXCEEDED"
    template = "{share} has {queued} waiting jobs and may have {max_queued}; wait until some have started."
