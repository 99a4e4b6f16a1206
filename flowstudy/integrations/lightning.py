"""GradientMonitor as a Lightning callback.

>>> from flowstudy.integrations.lightning import GradientMonitorCallback
>>> callback = GradientMonitorCallback(every=10)
>>> trainer = L.Trainer(callbacks=[callback])  # doctest: +SKIP
>>> trainer.fit(module); callback.monitor.plot()  # doctest: +SKIP
"""

try:
    import lightning.pytorch as pl
except ModuleNotFoundError:  # installed under its older name alone
    import pytorch_lightning as pl

from flowstudy.measure.monitor.monitor import GradientMonitor

from .scalars import LatestScalars


class GradientMonitorCallback(pl.Callback):
    """Monitors the LightningModule while it trains; a fit after another starts a new record.

    Gradient accumulation, clipping and 16-bit precision are as the Trainer was told.  The curves that `GradientMonitor`
    would give a TensorBoard writer go to the Trainer's loggers.  For a `pytorch_lightning.Trainer` pass it in a list.

    Args:
        options: those of `GradientMonitor`, as `every`, `quantities` and `store`; a `writer` takes the loggers' place.

    Attributes:
        monitor: the `GradientMonitor` of the latest fit, with its `frame` and `plot()`; None before the first.
    """

    def __init__(self, **options: object):
        self.options = options
        self.monitor: GradientMonitor | None = None
        self.scalars = LatestScalars()

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        options = {"writer": self.scalars, "scaler": scaler} | self.options
        self.monitor = GradientMonitor(pl_module, **options).attach()

    def on_train_batch_end(self, trainer: "pl.Trainer", *_: object) -> None:
        self.to_loggers(trainer)

    def on_train_end(self, trainer: "pl.Trainer", *_: object) -> None:
        self.monitor.detach()
        self.to_loggers(trainer)

    def on_exception(self, *_: object) -> None:
        if self.monitor is not None:
            self.monitor.detach()

    def to_loggers(self, trainer: "pl.Trainer") -> None:
        if self.scalars:
            step, scalars = self.scalars.step, self.scalars.take()
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=step)
