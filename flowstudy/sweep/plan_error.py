"""Plans, measurements and engines that cannot be used: the call is wrong, none of its cells."""

from flowstudy.refusal import RefusalError


class PlanError(RefusalError):
    """What was asked for cannot be done, and no smaller plan would change that: the run stops."""


class PlanTypeError(PlanError, TypeError):
    """An argument of a wrong kind."""


class MissingExtraError(PlanError, ModuleNotFoundError):
    """An engine whose package is not installed."""
