"""The errors of the bookkeeping; their reasons are documented in error_reason.proto."""

from grpc import StatusCode

from khomas.kit.errors import DomainError


class BookkeepingError(DomainError):
    """What all of them have in common."""

    area = "bookkeeping"


class ProductionMissing(BookkeepingError):
    """There is no such production."""

    code = StatusCode.NOT_FOUND
    reason = "PRODUCTION_NOT_FOUND"
    template = "There is no {name}."


class ProductionExists(BookkeepingError):
    """The name is taken."""

    code = StatusCode.ALREADY_EXISTS
    reason = "PRODUCTION_EXISTS"
    template = "There is a {name} already; take another name."


class ProductionState(BookkeepingError):
    """The state of the production does not allow this."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "PRODUCTION_STATE"
    template = "{name} is {state}, which does not allow this."


class StagesInvalid(BookkeepingError):
    """The stages do not fit together."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "STAGES_INVALID"
    template = "The stage {stage} does not fit the others."


class WorkItemMissing(BookkeepingError):
    """There is no such work item."""

    code = StatusCode.NOT_FOUND
    reason = "WORK_ITEM_NOT_FOUND"
    template = "There is no {name}; `khomas prod items` lists those of a production."


class ExpressionInvalid(BookkeepingError):
    """An expression cannot be computed."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "EXPRESSION_INVALID"
    template = "The expression {expression} cannot be computed (position {position})."


class TemplateInvalid(BookkeepingError):
    """The scheduler refuses the template of a stage."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "TEMPLATE_INVALID"
    template = "The jobs of the stage {stage} are refused by the scheduler ({reason})."


class StageMissing(BookkeepingError):
    """The production has no such stage."""

    code = StatusCode.NOT_FOUND
    reason = "STAGE_NOT_FOUND"
    template = "{production} has no stage {stage}."


class RunMissing(BookkeepingError):
    """There is no such run."""

    code = StatusCode.NOT_FOUND
    reason = "RUN_NOT_FOUND"
    template = "There is no {name}."


class RunExists(BookkeepingError):
    """The run is known with other facts."""

    code = StatusCode.ALREADY_EXISTS
    reason = "RUN_EXISTS"
    template = "{name} is known with other facts; change it with an update."


class TraceMissing(BookkeepingError):
    """Nothing has this id."""

    code = StatusCode.NOT_FOUND
    reason = "TRACE_NOT_FOUND"
    template = "No file, job, production, release, run, dataset, upload, adoption, transfer or rule has the id {id}."
