"""The one training loop: base, tune and every arm use it.

Killed at any step, it resumes from its last checkpoint and, on a CPU, ends with the same bytes:
batches are a pure function of the step, and a checkpoint holds the weights, the optimizer's state
and the curve so far.

A checkpoint is a Hugging Face folder in `work/`, which goes once the artifact is done. That of a
model with adapters holds the adapters alone: the weights below them are the caller's, who hands
them in again. What stays is `last/`, `best/` (least validation loss) and `curve.json`. Under
torchrun every process calls `train`, and the first one writes.

Source: arXiv:2509.15248, AdamW, warm-up then cosine. Deviation: the peak rate is a plain one, not a
muP-scaled 1e-2.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthboot.artifacts.model import Curve, Model
from synthboot.artifacts.store import WORK, Progress, silent
from synthboot.data.disk import committed_folder, damage, remove
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import Diverged, TrainingError, brief
from synthboot.kernels import library
from synthboot.lm import adapters, layouts, parallel, regularizers
from synthboot.lm import model as models
from synthboot.lm.batches import IGNORE, Batch, Batches
from synthboot.lm.loss import Loss, Teacher, autocast
from synthboot.lm.parallel import ALONE, Group
from synthboot.lm.track import Watch, unwatched

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPILE_FROM = 1e16
"""FLOPs of a run from which on compiling pays: half a minute of an H100, where it takes seven to
twenty seconds. It goes by FLOPs, not by seconds, so that all arms and resumed runs decide alike."""

_USUAL_STEPS = 50
"""Steps whose mean loss a loss is compared with, to find a spike."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    After each of `eval_steps` the validation loss is taken and a checkpoint written; a loss at step
    0 is for the curve alone, and is never the best. `dropout_seed` decides what dropout drops.
    `distill_weight` is the weight of the teachers' probabilities in the targets.
    """

    lr: float
    weight_decay: float
    warmup_steps: int
    eval_steps: tuple[int, ...]
    min_lr_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    micro_batch_tokens: int | None = None
    patience: int | None = None
    optimizer: str = "adamw"
    schedule: str = "cosine"
    decay_fraction: float = 0.2
    precision: str = "auto"
    z_loss: float = 0.0
    max_spike: float = 3.0
    final_weight_decay: float | None = None
    dropout: float = 0.0
    ema_decay: float = 0.0
    tail_average: float = 0.0
    dropout_seed: int = 0
    distill_weight: float = 0.0


@dataclass(frozen=True)
class Runtime:
    """Where a model trains, which does not change what it learns but for rounding.

    Between evaluations a checkpoint is written every `checkpoint_seconds`.
    """

    group: Group = ALONE
    checkpoint_activations: bool = False
    compile: str = "off"
    watch: Watch = unwatched
    checkpoint_seconds: float = math.inf


def train(
    model: PreTrainedModel,
    batches: Batches,
    settings: Settings,
    validate: Callable[[PreTrainedModel], float],
    folder: Path,
    tokenizer: Tokenizer,
    progress: Progress = silent,
    runtime: Runtime = Runtime(),
    copying: Callable[[PreTrainedModel], float] | None = None,
    teachers: Sequence[PreTrainedModel] = (),
    section: str = "optim",
) -> Curve:
    """Train `model` in place, from where `folder` left off; returns the curve.

    `validate` measures the validation loss. `copying` is measured beside it, for the curve alone.
    The mean of the probabilities of `teachers` is a target beside the text; the losses in the curve
    are those of the text alone. `section` is the section of the configuration that sets the
    learning rate, for error messages.

    Raises Diverged where the loss is not finite or leaps, naming the step, what it read, and the
    checkpoint to go back to.
    """
    trainer = _Trainer(
        model=model,
        batches=batches,
        settings=settings,
        validate=validate,
        folder=folder,
        tokenizer=tokenizer,
        runtime=runtime,
        copying=copying,
        teachers=teachers,
        section=section,
    )
    curve = trainer.curve
    if not curve.step and not curve.validation and 0 in settings.eval_steps:
        trainer.evaluate()
    if curve.step < batches.steps:
        _announce(trainer, progress)

    started = time.monotonic()
    first = curve.step
    # from the checkpoint: without them, a loss that has leapt would pass for the usual one
    recent = deque(curve.recent, maxlen=_USUAL_STEPS)
    while curve.step < batches.steps and not _exhausted(curve, settings):
        loss, norm = trainer.step()
        trainer.check(loss, norm, recent)
        recent.append(loss)
        curve.unreported.append(loss)
        curve.step += 1

        tokens = curve.step * batches.batch_tokens
        seconds = max(1e-9, time.monotonic() - started)
        rate = (curve.step - first) * batches.batch_tokens / seconds
        figures = {
            "loss": loss,
            "gradient_norm": norm,
            "lr": learning_rate(curve.step - 1, batches.steps, settings),
            "tokens_per_second": rate,
            "fraction_of_peak": rate * trainer.least_seconds_per_token,
        }
        progress(curve.step / batches.steps, _in_words(figures))
        runtime.watch(tokens, figures | batches.sources(curve.step))

        # after the last step in any case, so that the curve ends with a validation loss
        if curve.step in settings.eval_steps or curve.step == batches.steps:
            mean = sum(curve.unreported) / len(curve.unreported)
            curve.train.append([tokens, mean, norm, figures["lr"]])
            curve.unreported = []
            curve.recent = list(recent)
            trainer.evaluate()
            runtime.watch(tokens, {"validation_loss": curve.validation[-1][1]})
        elif trainer.is_due():
            curve.recent = list(recent)
            trainer.checkpoint()
    return trainer.finish()


def _in_words(figures: Mapping[str, float]) -> str:
    """The figures of a step, for the progress bar."""
    return (
        f"loss {figures['loss']:.3f}, gradient {figures['gradient_norm']:.2f}, "
        f"{figures['tokens_per_second']:,.0f} tokens/s, "
        f"{figures['fraction_of_peak']:.0%} of the peak"
    )


def _announce(trainer: _Trainer, progress: Progress) -> None:
    """Say beforehand what makes the first steps, or all of them, slower than one would expect."""
    done = trainer.curve.step / trainer.batches.steps
    if trainer.compiled:
        progress(done, "compiling the blocks, a minute or two (engine.compile)")
    if trainer.has_row_per_text:
        kind = trainer.model.config.model_type
        progress(done, f"{kind} cannot keep texts of one row apart: each has a row of its own")


class _Trainer:
    """The model, its optimizers and its curve, as far as they have come."""

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Batches,
        settings: Settings,
        validate: Callable[[PreTrainedModel], float],
        folder: Path,
        tokenizer: Tokenizer,
        runtime: Runtime,
        copying: Callable[[PreTrainedModel], float] | None,
        teachers: Sequence[PreTrainedModel],
        section: str,
    ) -> None:
        self.model = model
        self.batches = batches
        self.validate = validate
        self.copying = copying
        self.folder = folder
        self.work = folder / WORK
        self.tokenizer = tokenizer
        self.section = section
        self.group = runtime.group
        self.checkpoint_seconds = runtime.checkpoint_seconds
        self.device = next(model.parameters()).device

        # before the model is wrapped or sharded, while its weights are still whole
        latest = _latest(folder)
        self.adapted = adapters.present(model)
        if latest is not None:
            self._load_weights(latest)
        if runtime.checkpoint_activations:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

        # where attention cannot keep the texts of one row apart, each gets a row of its own
        self.has_row_per_text = batches.packed and not layouts.packs(model, batches.seq_len)
        self.settings = settings
        if self.has_row_per_text:
            self.settings = _for_row_per_text(settings, batches, self.group)

        # the model that is saved: with sharded weights the writing process has a whole copy
        self.written = model
        if self.group.shard and self.group.main:
            self.written = copy.deepcopy(model).cpu()

        self.precision = _precision(settings.precision, self.device)
        peak = models.product_rate(self.device, self.precision) * self.group.size
        # at the peak rate; a training step costs three forward passes
        self.least_seconds_per_token = 3 * models.flops_per_token(model, batches.seq_len) / peak
        self.compiled = not self.has_row_per_text and self._compiles(runtime)
        self.module = parallel.wrap(self._loss(teachers), self.group)

        if settings.dropout:
            regularizers.add_dropout(model, settings.dropout)

        # after wrapping: a shard's parameters are other objects than the model's were
        self.optimizers = _optimizers(model, settings)
        averages = settings.ema_decay or settings.tail_average
        self.average = regularizers.WeightAverage(model) if averages else None
        self.curve = Curve()
        self.next_batch: Batch | None = None
        self.saved_at = time.monotonic()
        if latest is not None:
            self._resume(latest)
        self.group.wait()

    def _resume(self, latest: Path) -> None:
        """Go on from a checkpoint, whose weights the model has: all else that it holds."""
        _load_optimizer(self.model, self.optimizers, latest / "optimizer.safetensors")
        self.curve = Model.open(latest).curve
        if self.average is not None:
            self.average.load(load_file(latest / "average.safetensors"))

    def _loss(self, teachers: Sequence[PreTrainedModel]) -> Loss:
        """The model with its loss, as it runs here."""
        # neither shards, whose weights are gathered and freed, nor torch's compiler go with the
        # compiled loops
        plain = self.group.shard or self.compiled
        teacher = None
        if teachers:
            teacher = Teacher(teachers, self.settings.distill_weight, self.precision, plain)
        loss = Loss(self.model, self.precision, self.settings.z_loss, plain, teacher)
        if self.compiled:
            # the blocks are alike, so that one is compiled for all
            for block in parallel.blocks(self.model):
                block.compile(dynamic=False)
        return loss

    def _load_weights(self, checkpoint: Path) -> None:
        """Overwrite the model's weights, or its adapters, with a checkpoint's.

        Raises TrainingError where they do not fit.
        """
        _require_intact(checkpoint)
        load = adapters.load if self.adapted else models.load_weights
        try:
            load(self.model, checkpoint)
        except Exception as error:  # safetensors and torch raise several kinds
            raise TrainingError(
                f"{checkpoint}: unreadable checkpoint ({brief(error)}); "
                f"delete this folder to go on without it"
            ) from None

    def _compiles(self, runtime: Runtime) -> bool:
        """Whether blocks are compiled, unless rows of many lengths would each be compiled for."""
        if runtime.compile != "auto":
            return runtime.compile == "on"
        if not library.has_triton(self.device.type):
            return False
        # of the whole run, not of what is left of it
        tokens = self.batches.steps * self.batches.batch_tokens
        each = 3 * models.flops_per_token(self.model, self.batches.seq_len)
        return tokens * each >= COMPILE_FROM

    def step(self) -> tuple[float, float]:
        """The mean loss over a step's targets and the gradient norm before clipping."""
        number = self.curve.step
        steps = self.batches.steps
        batch = self.next_batch or self.batches.batch(number)
        if self.has_row_per_text:
            batch = batch.apart(self.group.size)
        # without dropout of ours too: a model to continue from may bring its own
        regularizers.seed_dropout(self.settings.dropout_seed, number, self.group.rank)
        arguments = (self.module, batch, self.settings, self.group, self.device)
        try:
            loss, norm = forward_backward(*arguments)
        except torch.OutOfMemoryError:
            raise TrainingError(_too_large(*arguments)) from None

        lr = learning_rate(number, steps, self.settings)
        weight_decay = _weight_decay(number, steps, self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
                if group["decayed"]:
                    group["weight_decay"] = weight_decay
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            share = regularizers.average_share(
                number + 1, steps, self.settings.ema_decay, self.settings.tail_average
            )
            self.average.update(share)

        # made while a GPU works on this one: the loss below is the first thing that waits for it
        self.next_batch = self.batches.batch(number + 1) if number + 1 < steps else None
        return self.group.sum(float(loss)), float(parallel.gathered(norm))

    def check(self, loss: float, norm: float, recent: deque[float]) -> None:
        """Raise Diverged where the step that was just taken has gone wrong: by its loss, its
        gradient norm, and the losses of the steps before it."""
        usual = sum(recent) / len(recent) if recent else math.inf
        # only against a full window: the loss falls steeply in the first steps
        leapt = len(recent) == recent.maxlen and loss > usual + self.settings.max_spike
        if math.isfinite(loss) and math.isfinite(norm) and not leapt:
            return
        step = self.curve.step
        problem = f"loss {loss:.3f}"
        leap = None
        if leapt and math.isfinite(loss):
            problem += f" after a mean of {usual:.3f}"
            # tuning has no such setting, and what is not finite no other remedy
            if self.section == "optim" and math.isfinite(norm):
                leap = loss - usual
        raise self._diverged(
            f"{problem}, gradient norm {norm:.3g} at step {step + 1} of {self.batches.steps}",
            step + 1,
            f", on {self.batches.describe(step)}",
            leap,
        )

    def _diverged(
        self,
        problem: str,
        steps: int,
        read: str = "",
        leap: float | None = None,
    ) -> Diverged:
        """The error for a problem after so many steps: `read` says what the last step read, perhaps
        thousands of documents, `leap` by how much its loss lay above the usual one, where a larger
        optim.max_spike would have let that pass."""
        remedy = "" if leap is None else " or raise optim.max_spike"
        return Diverged(
            f"{self.folder}: {problem}{read}; "
            f"lower {self.section}.lr ({self.settings.lr:g}){remedy}; "
            f"the last good checkpoint is {_latest(self.folder) or 'none'}",
            reason=problem,
            leap=leap,
            steps=steps,
            evaluations=len(self.curve.validation),
        )

    def evaluate(self) -> None:
        """Take the validation loss, keep the model if it is the best, and write a checkpoint.

        The older best and the older checkpoint go only once the new checkpoint, which names its
        best, is in place. Raises Diverged, and leaves both, where the loss is not finite.
        """
        curve = self.curve
        tokens = curve.step * self.batches.batch_tokens
        with self._averaged():
            loss = self._scored(self.validate)
            if curve.step and not math.isfinite(loss):
                # the step's own loss was that of the weights before it
                raise self._diverged(
                    f"validation loss {loss} after step {curve.step} of {self.batches.steps}",
                    curve.step,
                )
            curve.validation.append([tokens, loss])
            if self.copying is not None:
                curve.copying.append([tokens, self._scored(self.copying)])
        is_best = bool(curve.step) and loss < curve.best_loss
        if is_best:
            curve.best_step = curve.step
            curve.best_loss = loss
            curve.evals_since_best = 0
        elif curve.step:
            curve.evals_since_best += 1

        # every process takes part in gathering, and only then does the first one write
        if is_best:
            with self._averaged():
                self._gather()
                if self.group.main:
                    best = self.work / f"best-{curve.best_step:08d}"
                    models.save(self._whole(), best, self.tokenizer)
        self.checkpoint()

    def is_due(self) -> bool:
        """Whether a checkpoint is due by the clock of any process, and so of all of them."""
        is_late = time.monotonic() - self.saved_at >= self.checkpoint_seconds
        return self.group.sum(float(is_late)) > 0

    def checkpoint(self) -> None:
        """Write a checkpoint in the place of the older one; all processes take part.

        Where a weight is not finite the older one stays: the next loss stops the run.
        """
        self._gather()
        state = _optimizer_state(self.model, self.optimizers)
        average = None if self.average is None else self.average.state()
        if self.group.main and _is_finite(self.written):
            self._write_checkpoint(state, average)
        self.group.wait()
        self.saved_at = time.monotonic()

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """While this lasts, the model has the weights that are measured and kept: their average, if
        one is taken."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def _scored(self, measure: Callable[[PreTrainedModel], float]) -> float:
        """A measure of the model, in the precision that it trains in."""
        eager: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self.compiled:
            # rows of other lengths than in training would each be compiled for
            eager = torch.compiler.set_stance("force_eager")
        with eager, autocast(self.device, self.precision):
            model = self.model
            if self.group.shard:
                # called as a model is, which is all that a measure does
                model = cast(
                    "PreTrainedModel", parallel.ScoringView(self.module, self.model.config)
                )
            found = measure(model)
        # That of the first process: where processors round differently, processes could take
        # different steps for the best, or for the last, and would wait for each other for ever.
        return self.group.sum(found if self.group.main else 0.0)

    def _write_checkpoint(
        self,
        state: dict[str, Tensor],
        average: dict[str, Tensor] | None,
    ) -> None:
        curve = self.curve
        best = f"best-{curve.best_step:08d}"
        current = self.work / f"checkpoint-{curve.step:08d}"
        with committed_folder(current) as temporary:
            if self.adapted:
                adapters.save(self.model, temporary)
            else:
                models.export(self.written, temporary, self.tokenizer)
            save_file(state, temporary / "optimizer.safetensors")
            if average is not None:
                save_file(average, temporary / "average.safetensors")
            Model.open(temporary).save_curve(curve)

        needed = {current.name, best}
        for old in sorted(self.work.iterdir()):
            if old.name.startswith(("best-", "checkpoint-")) and old.name not in needed:
                remove(old)

    def finish(self) -> Curve:
        """Write `last`, `best` and `curve.json`; a kill between any two of them spoils nothing."""
        self.curve.recent = []
        artifact = Model.open(self.folder)
        with self._averaged():
            self._gather()
            if self.group.main:
                models.save(self._whole(), artifact.last, self.tokenizer)
        if self.group.main:
            best = artifact.best
            kept = self.work / f"best-{self.curve.best_step:08d}"
            if kept.exists():
                _require_intact(kept)
                remove(best)
                os.rename(kept, best)
            elif self.curve.best_step >= 0:  # moved already, by a run that was killed after that
                _require_intact(best)
            artifact.save_curve(self.curve)
        self.group.wait()
        return self.curve

    def _whole(self) -> Any:
        """The model as an ordinary one, adapters merged."""
        return adapters.merged(self.model) if self.adapted else self.written

    def _gather(self) -> None:
        """Bring the model that is written up to date, where this process trains only a shard."""
        if not self.group.shard:
            return
        weights = {}
        for name, value in self.model.state_dict().items():
            weights[name] = parallel.gathered(value)
        if self.group.main:
            self.written.load_state_dict(weights)


def _for_row_per_text(settings: Settings, batches: Batches, group: Group) -> Settings:
    """The settings where every text has a row of its own.

    Rows are padded to the longest: all of them at once would take more memory than the packed rows
    that the batch was sized for.
    """
    if settings.micro_batch_tokens is not None:
        return settings
    return replace(settings, micro_batch_tokens=batches.batch_tokens // group.size)


def _exhausted(curve: Curve, settings: Settings) -> bool:
    """Whether training stops early."""
    return settings.patience is not None and curve.evals_since_best >= settings.patience


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """The learning rate of a step: warm-up, then cosine or warm-up-stable-decay (wsd)."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    low = settings.min_lr_fraction
    if settings.schedule == "wsd":
        decay_steps = max(1, round(settings.decay_fraction * steps))
        height = min(1.0, (steps - step) / decay_steps)
        return settings.lr * (low + (1 - low) * height)

    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def _weight_decay(step: int, steps: int, settings: Settings) -> float:
    """The weight decay of a step: the same always, or in a straight line to the final one."""
    if settings.final_weight_decay is None:
        return settings.weight_decay
    done = step / max(1, steps - 1)
    return settings.weight_decay + done * (settings.final_weight_decay - settings.weight_decay)


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _optimizers(model: PreTrainedModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, with decay for matrices alone; before it Muon for the blocks', if asked for."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1]
    vectors = [p for p in trained if p.dim() <= 1]  # norms and biases are not decayed
    optimizers: list[torch.optim.Optimizer] = []

    if settings.optimizer == "muon":
        # embedding and output matrix are tables of rows: orthogonal updates do not suit them
        tables = set()
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                tables.add(id(module.weight))
        hidden = [p for p in matrices if p.dim() == 2 and id(p) not in tables]
        muon = torch.optim.Muon(
            [{"params": hidden, "decayed": True}],
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",  # one learning rate for both optimizers
        )
        optimizers.append(muon)
        # by identity: `in` would compare tensors by their values
        hidden_ids = set(map(id, hidden))
        matrices = [p for p in matrices if id(p) not in hidden_ids]

    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay, "decayed": True},
        {"params": vectors, "weight_decay": 0.0, "decayed": False},
    ]
    # sharded weights (FSDP2) take the plain implementation
    fused = not any(hasattr(p, "device_mesh") for p in model.parameters())
    betas = (settings.beta1, settings.beta2)
    optimizers.append(
        torch.optim.AdamW(
            groups,
            lr=settings.lr,
            betas=betas,
            fused=fused,
        )
    )
    return optimizers


def _too_large(
    module: torch.nn.Module,
    batch: Batch,
    settings: Settings,
    group: Group,
    device: torch.device,
) -> str:
    """The error message for a forward pass that does not fit the memory: how many tokens at once
    do, found by halving."""
    width = batch.inputs.shape[1]
    share = batch.inputs.size // group.size
    tokens = min(settings.micro_batch_tokens or batch.inputs.size, share)
    rows = max(1, tokens // width)
    problem = f"{tokens:,} tokens at once do not fit the memory of {device}"

    while group.size == 1 and rows > 1:  # one rank alone cannot try: the others would wait
        rows //= 2
        module.zero_grad(set_to_none=True)  # what the failed pass left would take memory
        part = Batch(
            batch.inputs[:rows],
            batch.targets[:rows],
            None if batch.segments is None else batch.segments[:rows],
            None if batch.positions is None else batch.positions[:rows],
        )
        with contextlib.suppress(torch.OutOfMemoryError):
            forward_backward(module, part, settings, group, device)
            fitting = rows * width
            return (
                f"{problem}; {fitting:,} do: set engine.micro_batch_tokens={fitting}, "
                f"which changes nothing else"
            )
    return (
        f"{problem}; lower engine.micro_batch_tokens (a row is {width:,}), "
        f"or set engine.checkpoint_activations=true"
    )


def forward_backward(
    module: torch.nn.Module,
    batch: Batch,
    settings: Settings,
    group: Group,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The loss and gradient norm of a step; the gradients are left clipped.

    The loss is this process' share of the mean over the batch's targets; the norm is the one before
    clipping. Nothing here waits for a GPU, except that transformers looks at the positions of
    packed rows.
    """
    module.train()
    mine = parallel.share(len(batch.inputs), group)
    num_targets = int((batch.targets != IGNORE).sum())
    divisor = num_targets / group.size  # gradients are averaged over processes
    inputs = batch.inputs[mine]
    targets = batch.targets[mine]
    positions = None if batch.positions is None else batch.positions[mine]
    rows, width = inputs.shape
    micro_rows = max(1, (settings.micro_batch_tokens or rows * width) // width)

    total = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, rows, micro_rows):
        part = slice(start, start + micro_rows)
        kept = targets[part] != IGNORE  # (row, token)
        end = width
        if positions is None:
            # rows of one run of text end with their targets: padding beyond the longest of these
            # rows is not computed
            end = 1 + int(kept.any(0).nonzero()[0].max(initial=0))
        # places of the targets, row after row: found here, where nothing has to be waited for
        places = np.flatnonzero(kept[:, :end])

        with parallel.accumulating(module, last=start + micro_rows >= rows):
            loss, cross_entropy = module(
                _to(device, inputs[part, :end]),
                _to(device, targets[part, :end]),
                divisor,
                None if positions is None else _to(device, positions[part]),
                _to(device, places),
            )
            loss.backward()
        total += cross_entropy / group.size
    return total, torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip)


def _to(device: torch.device, array: np.ndarray) -> Tensor:
    # slices of a batch lie apart in memory; in one piece they are one copy to the device
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _is_finite(model: PreTrainedModel) -> bool:
    """Whether all weights are numbers."""
    return all(bool(weight.isfinite().all()) for weight in model.parameters())


def _latest(folder: Path) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    checkpoints = sorted((folder / WORK).glob("checkpoint-*"))
    finished = [path for path in checkpoints if path.suffix != ".tmp"]
    return finished[-1] if finished else None


def _require_intact(checkpoint: Path) -> None:
    """Raise TrainingError where a folder is not what was written: training from it would go wrong
    silently."""
    problem = damage(checkpoint)
    if problem:
        raise TrainingError(
            f"{checkpoint}: unreadable checkpoint ({problem}); put it back from a copy, or delete "
            f"{checkpoint.parent} to train from the start"
        )


def _optimizer_state(
    model: PreTrainedModel,
    optimizers: Iterable[torch.optim.Optimizer],
) -> dict[str, Tensor]:
    """Whole states by parameter and key; all processes have to ask."""
    state = {}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"{name}/{key}"] = parallel.gathered(value)
    return state


def _load_optimizer(
    model: PreTrainedModel,
    optimizers: Iterable[torch.optim.Optimizer],
    path: Path,
) -> None:
    """Put the states that `_optimizer_state` gathered back into the optimizers."""
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        parameter_name, _, key = name.rpartition("/")
        states.setdefault(parameter_name, {})[key] = value

    for name, parameter in model.named_parameters():
        state = states.get(name)
        if state is None:
            continue
        for optimizer in optimizers:
            if _trains(optimizer, parameter):
                # cut as the parameter is, which need not be as it was when this was written
                placed = {key: parallel.placed_as(parameter, v) for key, v in state.items()}
                optimizer.state[parameter] = placed


def _trains(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter is this optimizer's, by identity: `in` would compare values."""
    return any(p is parameter for group in optimizer.param_groups for p in group["params"])
