"""The callbacks in the real Lightning and Hugging Face trainers: what they record is what a loop by hand records."""

import copy
import os
import socket
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CLASSES, FEATURES, assert_same, fingerprint
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.measure.monitor import optimizers
from flowstudy.measure.monitor.monitor import GradientMonitor
from flowstudy.nets import PlainNet, initialize

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # read when transformers is imported

WANTED = "install them with `make test-integrations`"
lightning = pytest.importorskip("lightning.pytorch", reason=f"Lightning is not installed: {WANTED}")
pytorch_lightning = pytest.importorskip("pytorch_lightning")
transformers = pytest.importorskip("transformers", reason=f"transformers is not installed: {WANTED}")
pytest.importorskip("accelerate", reason=f"accelerate is not installed: {WANTED}")

from flowstudy.integrations import huggingface as hugging_face  # noqa: E402
from flowstudy.integrations import lightning as for_lightning  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(line) for line in (
    "ignore:.*isinstance.treespec, LeafSpec.. is deprecated:FutureWarning",  # Lightning 2.6 beside torch 2.13
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:The number of training batches .* is smaller than the logging interval",
)]

STEPS, MICRO, CLIP, LEARNING_RATE = 4, 2, 0.05, 0.1
BY_HAND = ["log10_weight_gradient_norm", "log10_clipped_gradient_norm", "update_to_weight"]

Loss = Callable[[nn.Module, object], Tensor]


def by_hand(model: nn.Module, batches: Iterable[object], loss: Loss) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Plain SGD, micro-batches summed, clipped: the monitor's frame, and norms computed here, weight by weight."""
    optimizer, rows, batches = torch.optim.SGD(model.parameters(), LEARNING_RATE), [], list(batches)
    weights = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if p.ndim == 2}
    with GradientMonitor(model) as monitor:
        for step in range(STEPS):
            for batch in batches[MICRO * step:MICRO * (step + 1)]:
                loss(model, batch).backward()
            raw = [norm(p.grad) for p in weights.values()]
            assert nn.utils.clip_grad_norm_(model.parameters(), CLIP) > CLIP
            clipped = [norm(p.grad) for p in weights.values()]
            before = [p.detach().double() for p in weights.values()]
            optimizer.step()
            optimizer.zero_grad()
            update = [norm(p.detach() - b) / norm(b) for p, b in zip(weights.values(), before, strict=True)]
            rows.append(pd.DataFrame(dict(zip(BY_HAND, (np.log10(raw), np.log10(clipped), update), strict=True))
                                     | {"step": step, "module": list(weights)}))
    return monitor.frame, pd.concat(rows)


def norm(tensor: Tensor) -> float:
    return tensor.double().norm().item()


def assert_same_record(found: pd.DataFrame, expected: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    monitored, slow = expected
    pd.testing.assert_frame_equal(found, monitored, rtol=1e-5)  # float32: a trainer may divide its loss elsewhere
    both = slow.merge(found, on=["step", "module"], suffixes=("", "_found"))
    assert len(both) == len(slow)
    for name in BY_HAND:
        np.testing.assert_allclose(both[f"{name}_found"], both[name], rtol=1e-5, atol=1e-5)


def watched(model: nn.Module) -> object:
    """All that a monitor hooks: modules, weights, and whoever listens to every optimizer's steps."""
    return (fingerprint(model)["hooks"], [list(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
            optimizers.STEPS.listeners)


@pytest.fixture(autouse=True)
def nothing_leaves(tmp_path, monkeypatch):
    """No connection is made, and no file written but where the test says."""
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was attempted")

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not list(here.iterdir())


# --- Lightning -------------------------------------------------------------------------------------------------------


def examples() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(5, FEATURES, generator=generator), torch.randint(CLASSES, (5,), generator=generator))
            for _ in range(STEPS * MICRO)]


def loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(examples(), batch_size=None)


def lightning_module(pl: object) -> nn.Module:
    class Module(pl.LightningModule):
        fails_at = None

        def __init__(self):
            super().__init__()
            self.net = initialize(PlainNet(FEATURES, 11, 4, CLASSES, "tanh"), "glorot_normal")

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            if self.global_step == self.fails_at:
                raise ZeroDivisionError
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor], _index: int) -> None:
            self(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), LEARNING_RATE)

    return Module()


def trainer(pl: object, folder: object, callback: object, **options: object) -> object:
    options = {"logger": False, "gradient_clip_val": CLIP, "accumulate_grad_batches": MICRO, "max_epochs": 1} | options
    return pl.Trainer(accelerator="cpu", devices=1, callbacks=[callback], default_root_dir=folder,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options)


@pytest.mark.parametrize("pl", [lightning, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
@pytest.mark.usefixtures("annotations_unchecked")  # one callback class for either package's Trainer
def test_lightning_records_what_a_loop_by_hand_records(pl, tmp_path):
    """Accumulation, clipping, and validation in between; then no hook is left."""
    module, callback = lightning_module(pl), for_lightning.GradientMonitorCallback(store=tmp_path / "records")
    expected = by_hand(copy.deepcopy(module), examples(), lambda m, b: F.cross_entropy(m(b[0]), b[1]) / MICRO)
    before = watched(module)
    trainer(pl, tmp_path, callback, val_check_interval=1).fit(module, loader(), loader())
    assert_same(before, watched(module))
    assert_same_record(callback.monitor.frame, expected)
    pd.testing.assert_frame_equal(GradientMonitor.load(tmp_path / "records"), callback.monitor.frame)


def test_lightning_gets_the_gradients_unscaled(tmp_path):
    """Half precision with a GradScaler: the recorded norms are float32's to 1 %, not 2^16 apart; a fit starts anew."""
    precision = lightning.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    callback, frames = for_lightning.GradientMonitorCallback(), []
    for options in ({}, {"plugins": [precision]}):
        trainer(lightning, tmp_path, callback, **options).fit(lightning_module(lightning), loader(), loader())
        frames.append(callback.monitor.frame)
    assert len(frames[0]) == len(frames[1]) == STEPS * 5
    np.testing.assert_allclose(frames[1][BY_HAND[:2]], frames[0][BY_HAND[:2]], rtol=0, atol=np.log10(1.01))


def test_lightning_logs_the_curves(tmp_path):
    """The Trainer's logger gets the first, median and last layer of every record, at its step."""
    module, callback = lightning_module(lightning), for_lightning.GradientMonitorCallback(every=2)
    logger = lightning.loggers.CSVLogger(tmp_path)
    trainer(lightning, tmp_path, callback, logger=logger).fit(module, loader(), loader())
    logged = pd.read_csv(tmp_path / "lightning_logs" / "version_0" / "metrics.csv").set_index("step")
    frame = callback.monitor.frame
    assert callback.monitor.records == 2 and logged.index.tolist() == [0, 2]
    for curve, layer in (("first layer", 1), ("last layer", 5)):
        norms = frame[frame["layer"] == layer].set_index("step")["log10_weight_gradient_norm"]
        np.testing.assert_allclose(logged[f"log10_weight_gradient_norm/{curve}"], norms)


def test_lightning_ends_the_watch_on_an_exception(tmp_path):
    """A training step that fails leaves no hook, and what was recorded before can be read."""
    module, callback = lightning_module(lightning), for_lightning.GradientMonitorCallback()
    before, module.fails_at = watched(module), 2
    with pytest.raises(ZeroDivisionError):
        trainer(lightning, tmp_path, callback).fit(module, loader(), loader())
    assert_same(before, watched(module))
    assert callback.monitor.records == 2


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=20, n_positions=8, loss_type="ForCausalLM",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def hugging_face_trainer(model: nn.Module, folder: object, callback: object) -> tuple[object, list[dict[str, Tensor]]]:
    """A Trainer, and the list to which it adds the batches that it takes."""
    tokens = torch.randint(20, (3 * STEPS * MICRO, 8), generator=torch.Generator().manual_seed(1))
    taken: list[dict[str, Tensor]] = []

    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        tokens = torch.stack(rows)
        taken.append({"input_ids": tokens, "labels": tokens.index_fill(1, torch.tensor([0]), -100)})
        return dict(taken[-1])

    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
        num_train_epochs=1, per_device_train_batch_size=3, gradient_accumulation_steps=MICRO, max_grad_norm=CLIP,
        optim="sgd", learning_rate=LEARNING_RATE, lr_scheduler_type="constant", remove_unused_columns=False)
    return transformers.Trainer(model, arguments, data_collator=collate, train_dataset=list(tokens),
                                callbacks=[callback]), taken


def next_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Averaged over the tokens of all micro-batches of a step, as the Trainer does."""
    logits = model(batch["input_ids"]).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()) / MICRO


def test_hugging_face_records_what_a_loop_by_hand_records(tmp_path):
    """A transformer with a tied read-out, accumulated and clipped; then no hook is left."""
    model, callback = language_model(), hugging_face.GradientMonitorCallback(store=tmp_path / "records")
    original, before = copy.deepcopy(model), watched(model)
    trainer, batches = hugging_face_trainer(model, tmp_path / "out", callback)
    trainer.train()
    assert_same(before, watched(model))
    assert_same_record(callback.monitor.frame, by_hand(original.train(), batches, next_token_loss))
    pd.testing.assert_frame_equal(GradientMonitor.load(tmp_path / "records"), callback.monitor.frame)


def test_hugging_face_logs_the_curves(tmp_path):
    """The Trainer's log has, beside the loss, the first, median and last layer of the latest record."""
    callback = hugging_face.GradientMonitorCallback()
    trainer, _ = hugging_face_trainer(language_model(), tmp_path, callback)
    trainer.train()
    frame = callback.monitor.frame
    norms = frame[frame["layer"] == 1].set_index("step")["log10_weight_gradient_norm"]
    curve = "log10_weight_gradient_norm/first layer"
    log = [entry for entry in trainer.state.log_history if "loss" in entry and curve in entry]
    logged = {entry["step"] - 1: entry[curve] for entry in log}
    assert len(logged) >= STEPS - 1 and logged == norms[list(logged)].to_dict()


def test_hugging_face_watch_can_be_ended_after_an_exception(tmp_path):
    """The Trainer tells callbacks of no exception: detach() ends the watch, and so does the next train()."""
    class Failing(transformers.TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            raise ZeroDivisionError

    model, callback = language_model(), hugging_face.GradientMonitorCallback()
    before = watched(model)
    trainer, _ = hugging_face_trainer(model, tmp_path, callback)
    trainer.add_callback(Failing)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    assert len(optimizers.STEPS.listeners) == len(before[2]) + 1
    callback.monitor.detach()
    assert_same(before, watched(model))
    assert callback.monitor.records == 1
