"""A writer that hands a monitor's curves on to a trainer's own log."""


class LatestScalars(dict[str, float]):
    """A writer, as a TensorBoard SummaryWriter is one, that keeps the latest value of each curve until it is taken."""

    step: int  # of the latest value; read only where there is one

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self[tag], self.step = float(scalar_value), global_step

    def take(self) -> dict[str, float]:
        taken = dict(self)
        self.clear()
        return taken
