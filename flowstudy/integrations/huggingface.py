"""GradientMonitor as a callback of Hugging Face's Trainer.

>>> from flowstudy.integrations.huggingface import GradientMonitorCallback
>>> callback = GradientMonitorCallback(every=10)
>>> trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])  # doctest: +SKIP
>>> trainer.train(); callback.monitor.plot()  # doctest: +SKIP
"""

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flowstudy.measure.monitor.monitor import GradientMonitor

from .scalars import LatestScalars


class GradientMonitorCallback(TrainerCallback):
    """Monitors the model while it trains; a `train()` after another starts a new record.

    Gradient accumulation, clipping and mixed precision are as the Trainer was told.  The curves that `GradientMonitor`
    would give a TensorBoard writer join `trainer.state.log_history`.  The Trainer's reporters (`report_to`) have been
    served by then: for TensorBoard pass `writer=SummaryWriter(...)`.

    The Trainer does not tell callbacks of an exception: after one, `callback.monitor.detach()` ends the watch, as does
    the next `train()`.

    Args:
        options: those of `GradientMonitor`, as `every`, `quantities`, `store` and `writer`.

    Attributes:
        monitor: the `GradientMonitor` of the latest `train()`, with its `frame` and `plot()`; None before the first.
    """

    def __init__(self, **options: object):
        self.options = options
        self.monitor: GradientMonitor | None = None
        self.scalars = LatestScalars()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *,
                       model: nn.Module, optimizer: object, **_: object) -> None:
        if self.monitor is not None:
            self.monitor.detach()
        scaler = getattr(optimizer, "scaler", None)  # accelerate's wrapper has it, in 16-bit precision
        options = {"writer": self.scalars, "scaler": scaler} | self.options
        self.monitor = GradientMonitor(model, **options).attach()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        state.log_history[-1].update(self.scalars.take())

    def on_train_end(self, *_: object, **__: object) -> None:
        self.monitor.detach()
