"""Errors about plans, measurements and engines that cannot be used, which are not the fault of a cell."""

from flowstudy.refusal import RefusalError


class PlanError(RefusalError):
    """The call cannot be carried out, and a smaller plan would not change that: the run stops."""


class PlanTypeError(PlanError, TypeError):
    """An argument of a wrong kind."""


class MissingExtraError(PlanError, ModuleNotFoundError):
    """An engine whose package is not installed."""
