"""The one training loop: base, tune and every arm use it.

Killed at any step, it resumes from its last checkpoint and ends with the same bytes on a CPU: batches are a pure function
of the step, and a checkpoint holds the weights, the optimizer and the curve so far. Every checkpoint is a Hugging Face
folder in `work/`, which goes once the artifact is done. Left in the end: `last/`, `best/` (least validation loss) and
`curve.json`. Under torchrun every process calls `train`, and the first one writes.

Source: arXiv:2509.15248, AdamW, warm-up then cosine. Deviation: the peak rate is a plain one, not a muP-scaled 1e-2.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthboot.data.artifacts import WORK, Progress, silent
from synthboot.data.disk import committed_folder, damage, read_json, remove, write_json
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import TrainingError
from synthboot.lm import layouts, parallel
from synthboot.lm import model as models
from synthboot.lm.batches import IGNORE, Batch, Batches
from synthboot.lm.loss import Loss
from synthboot.lm.parallel import ALONE, Group
from synthboot.lm.track import Watch, unwatched

COMPILE_FROM = 600.0
"""Seconds that a run takes for which compiling pays."""


@dataclass(frozen=True)
class Settings:
    """How to train. `eval_steps` are the steps after which validation loss is taken and a checkpoint written; a loss at step
    0 is for the curve alone and never the best."""

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


@dataclass(frozen=True)
class Place:
    """Where a model trains, which does not change what it learns but for rounding."""

    group: Group = ALONE
    checkpoint_activations: bool = False
    compile: str = "off"
    watch: Watch = unwatched


@dataclass
class Curve:
    """What happened. `train` rows are [tokens, mean loss since the last row, gradient norm, lr]; `validation` rows are
    [tokens, loss]; `best_step` counts optimizer steps done."""

    step: int = 0
    best_step: int = -1
    best_loss: float = math.inf
    evals_since_best: int = 0
    train: list[list[float]] = field(default_factory=list)
    validation: list[list[float]] = field(default_factory=list)

    @property
    def last_loss(self) -> float:
        """Validation loss at the end."""
        return self.validation[-1][1] if self.validation else math.nan


def train(
    model: Any, batches: Batches, settings: Settings, validate: Callable[[Any], float], folder: Path, tokenizer: Tokenizer,
    progress: Progress = silent, place: Place = Place(),
) -> Curve:  # fmt: skip
    """Train `model` in place, from where `folder` left off; returns the curve.

    Raises TrainingError where the loss is not finite or leaps, naming the step, what it read, and the checkpoint to go back
    to.
    """
    trainer = _Trainer(model, batches, settings, validate, folder, tokenizer, place)
    curve = trainer.curve
    if not curve.step and not curve.validation and 0 in settings.eval_steps:
        trainer.evaluate()
    started, first = time.monotonic(), curve.step
    if trainer.compiled and curve.step < batches.steps:
        progress(
            curve.step / batches.steps, "compiling the blocks, a minute or two (engine.compile)"
        )
    if trainer.apart and curve.step < batches.steps:
        kind = model.config.model_type
        progress(
            curve.step / batches.steps,
            f"{kind} cannot keep texts of one row apart: each has a row of its own",
        )
    losses: list[float] = []
    before: deque[float] = deque(maxlen=50)
    while curve.step < batches.steps and not _exhausted(curve, settings):
        loss, norm = trainer.step()
        losses.append(loss)
        _check(loss, norm, before, curve.step, batches, settings, folder)
        before.append(loss)
        curve.step += 1
        tokens, lr = curve.step * batches.batch_tokens, _lr(curve.step - 1, batches.steps, settings)
        rate = (curve.step - first) * batches.batch_tokens / max(1e-9, time.monotonic() - started)
        share = rate * trainer.cost
        words = (
            f"loss {loss:.3f}, gradient {norm:.2f}, {rate:,.0f} tokens/s, {share:.0%} of the peak"
        )
        progress(curve.step / batches.steps, words)
        figures = {
            "loss": loss,
            "gradient_norm": norm,
            "lr": lr,
            "tokens_per_second": rate,
            "fraction_of_peak": share,
        }
        place.watch(tokens, figures | batches.sources(curve.step))
        if curve.step in settings.eval_steps or curve.step == batches.steps:
            curve.train.append([tokens, sum(losses) / len(losses), norm, lr])
            losses = []
            trainer.evaluate()
            place.watch(tokens, {"validation_loss": curve.validation[-1][1]})
    return trainer.finish()


class _Trainer:
    """The model, its optimizers and its curve, as far as they have come."""

    def __init__(
        self, model: Any, batches: Batches, settings: Settings, validate: Callable[[Any], float], folder: Path,
        tokenizer: Tokenizer, place: Place,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.settings, self.validate = model, batches, settings, validate
        self.folder, self.work, self.tokenizer, self.group = (
            folder,
            folder / WORK,
            tokenizer,
            place.group,
        )
        self.device = next(model.parameters()).device
        latest = _latest(folder)
        if latest is not None:
            _whole(latest)
            models.load_weights(model, latest)
        if place.checkpoint_activations:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        self.apart = batches.packed and not layouts.packs(model, batches.seq_len)
        if (
            self.apart and settings.micro_batch_tokens is None
        ):  # rows of their own are longer than they are filled
            self.settings = replace(
                settings, micro_batch_tokens=batches.batch_tokens // self.group.size
            )
        self.written = copy.deepcopy(model).cpu() if self.group.shard and self.group.main else model
        precision = _precision(settings.precision, self.device)
        peak = models.product_rate(self.device, precision) * self.group.size
        self.cost = (
            3 * models.flops_per_token(model, batches.seq_len) / peak
        )  # seconds a token at the peak
        seconds = (
            self.cost * batches.steps * batches.batch_tokens / 0.4
        )  # of the whole run, so that going on decides alike
        long = self.device.type == "cuda" and seconds >= COMPILE_FROM
        wished = place.compile == "on" or (place.compile == "auto" and long)
        self.compiled = wished and not self.apart  # rows of many lengths would each be compiled for
        # neither weights that are put together and taken apart again nor torch's compiler go with the compiled loops
        loss = Loss(model, precision, settings.z_loss, plain=self.group.shard or self.compiled)
        if self.compiled:  # the blocks are alike, so that one is compiled for all
            for block in parallel.blocks(model):
                block.compile(dynamic=False)
        self.module = parallel.wrap(loss, self.group)
        self.optimizers = _optimizers(model, settings)
        self.curve = Curve()
        self.ahead: Batch | None = None
        if latest is not None:
            _load_optimizer(model, self.optimizers, latest / "optimizer.safetensors")
            self.curve = Curve(**read_json(latest / "curve.json"))
        self.group.wait()

    def step(self) -> tuple[float, float]:
        """One optimizer step; returns the mean loss over the batch's targets and the gradient norm before clipping."""
        number = self.curve.step
        batch = self.ahead or self.batches.batch(number)
        batch = batch.apart(self.group.size) if self.apart else batch
        try:
            loss, norm = _step(self.module, batch, self.settings, self.group, self.device)
        except torch.OutOfMemoryError:
            raise TrainingError(
                _too_large(self.module, batch, self.settings, self.group, self.device)
            ) from None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _lr(number, self.batches.steps, self.settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # made while a GPU works on this one
        self.ahead = self.batches.batch(number + 1) if number + 1 < self.batches.steps else None
        return self.group.sum(float(loss)), float(parallel.whole(norm))

    def evaluate(self) -> None:
        """Take the validation loss, keep the model if it is the best, and write a checkpoint that can be resumed.

        The older best and the older checkpoint go only once the new checkpoint, which names its best, is in place.
        """
        curve = self.curve
        # rows have other lengths here, and would all be compiled anew
        eager = (
            torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()
        )
        with eager:
            loss = self.validate(parallel.Whole(self.module) if self.group.shard else self.model)
        curve.validation.append([curve.step * self.batches.batch_tokens, loss])
        best = bool(curve.step) and loss < curve.best_loss
        if best:
            curve.best_step, curve.best_loss, curve.evals_since_best = curve.step, loss, 0
        elif curve.step:
            curve.evals_since_best += 1
        self._gather()
        state = _optimizer_state(self.model, self.optimizers)
        if self.group.main:
            if best:
                models.save(self.written, self.work / f"best-{curve.step:08d}", self.tokenizer)
            current = self.work / f"checkpoint-{curve.step:08d}"
            with committed_folder(current) as temporary:
                models.export(self.written, temporary, self.tokenizer)
                _save(state, temporary / "optimizer.safetensors")
                write_json(temporary / "curve.json", vars(curve))
            needed = {current.name, f"best-{curve.best_step:08d}"}
            for old in sorted(self.work.iterdir()):
                if old.name.startswith(("best-", "checkpoint-")) and old.name not in needed:
                    remove(old)
        self.group.wait()

    def finish(self) -> Curve:
        """Leave `last`, `best` and `curve.json`, in an order that a kill between any two cannot spoil."""
        self._gather()
        if self.group.main:
            models.save(self.written, self.folder / "last", self.tokenizer)
            best, kept = self.folder / "best", self.work / f"best-{self.curve.best_step:08d}"
            if kept.exists():
                _whole(kept)
                remove(best)
                os.rename(kept, best)
            elif self.curve.best_step >= 0:  # a run that was killed here has moved it already
                _whole(best)
            write_json(self.folder / "curve.json", vars(self.curve))
        self.group.wait()
        return self.curve

    def _gather(self) -> None:
        """Bring the model that is written up to date, where this process trains but a shard of it."""
        if self.group.shard:
            weights = {
                name: parallel.whole(value) for name, value in self.model.state_dict().items()
            }
            if self.group.main:
                self.written.load_state_dict(weights)


def _check(
    loss: float,
    norm: float,
    before: deque[float],
    step: int,
    batches: Batches,
    settings: Settings,
    folder: Path,
) -> None:
    """Raise TrainingError where a step has gone wrong."""
    usual = sum(before) / len(before) if before else math.inf
    leapt = len(before) == before.maxlen and loss > usual + settings.max_spike
    if math.isfinite(loss) and math.isfinite(norm) and not leapt:
        return
    what = f"loss {loss:.3f} after a mean of {usual:.3f}" if leapt else f"loss {loss}"
    raise TrainingError(
        f"{folder}: {what}, gradient norm {norm:.3g} at step {step + 1} of {batches.steps}, on {batches.describe(step)}; "
        f"lower the learning rate (or raise optim.max_spike); the last good checkpoint is {_latest(folder) or 'none'}"
    )


def _exhausted(curve: Curve, settings: Settings) -> bool:
    return settings.patience is not None and curve.evals_since_best >= settings.patience


def _lr(step: int, steps: int, settings: Settings) -> float:
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    low = settings.min_lr_fraction
    if settings.schedule == "wsd":
        down = max(1, round(settings.decay_fraction * steps))
        return settings.lr * (low + (1 - low) * min(1.0, (steps - step) / down))
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _optimizers(model: Any, settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW, with decay for matrices alone; before it Muon for the matrices of the blocks, where that is asked for."""
    tables = {
        id(m.weight)
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
        if m is not None
    }
    matrices = [p for p in model.parameters() if p.dim() > 1]
    found: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        hidden = [p for p in matrices if p.dim() == 2 and id(p) not in tables]
        found.append(
            torch.optim.Muon(
                hidden,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
        matrices = [p for p in matrices if all(p is not h for h in hidden)]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = not any(hasattr(p, "device_mesh") for p in model.parameters())
    return [
        *found,
        torch.optim.AdamW(
            groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=fused
        ),
    ]


def _too_large(
    module: torch.nn.Module, batch: Batch, settings: Settings, group: Group, device: torch.device
) -> str:
    """What to say of a forward pass that does not fit: the most tokens at once that do, found by halving."""
    width = batch.inputs.shape[1]
    asked = min(settings.micro_batch_tokens or batch.inputs.size, batch.inputs.size // group.size)
    rows = max(1, asked // width)
    where = f"{asked:,} tokens at once do not fit the memory of {device}"
    while group.size == 1 and rows > 1:  # one rank alone cannot try: the others would wait
        rows //= 2
        module.zero_grad(set_to_none=True)
        cut = (None if a is None else a[:rows] for a in (batch.segments, batch.positions))
        part = Batch(batch.inputs[:rows], batch.targets[:rows], *cut)
        with contextlib.suppress(torch.OutOfMemoryError):
            _step(module, part, settings, group, device)
            return f"{where}; {rows * width:,} do: set engine.micro_batch_tokens={rows * width}, which changes nothing else"
    return f"{where}; lower engine.micro_batch_tokens (a row is {width:,}), or set engine.checkpoint_activations=true"


def _step(
    module: torch.nn.Module, batch: Batch, settings: Settings, group: Group, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of a step, clipped; returns this process' share of the mean loss over the batch's targets, and the gradient
    norm before clipping. Nothing here waits for a GPU, but for the library's look at the positions of packed rows."""
    module.train()
    mine = parallel.share(len(batch.inputs), group)
    targets = int((batch.targets != IGNORE).sum())
    inputs, wanted = batch.inputs[mine], batch.targets[mine]
    rows, width = inputs.shape
    micro = max(1, (settings.micro_batch_tokens or rows * width) // width)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, rows, micro):
        part = slice(start, start + micro)
        # rows of one run of text end with their targets: what fills them up to the longest of all is not computed
        end = (
            width
            if batch.positions is not None
            else 1 + int((wanted[part] != IGNORE).any(0).nonzero()[0].max(initial=0))
        )
        with parallel.accumulating(module, last=start + micro >= rows):
            loss, plain = module(
                _there(inputs[part, :end], device), _there(wanted[part, :end], device),
                targets / group.size,  # gradients are averaged over processes
                _positions(batch, mine, part, device),
                _there(np.flatnonzero(wanted[part, :end] != IGNORE), device),
            )  # fmt: skip
            loss.backward()
        total += plain / group.size
    return total, torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip)


def _there(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _positions(batch: Batch, mine: slice, part: slice, device: torch.device) -> torch.Tensor | None:
    return None if batch.positions is None else _there(batch.positions[mine][part], device)


def _latest(folder: Path) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    found = sorted(p for p in (folder / WORK).glob("checkpoint-*") if p.suffix != ".tmp")
    return found[-1] if found else None


def _whole(checkpoint: Path) -> None:
    """Raise TrainingError where a folder is not what was written: what is trained from it would be wrong without a word."""
    problem = damage(checkpoint)
    if problem:
        raise TrainingError(
            f"{checkpoint}: unreadable checkpoint ({problem}); put it back from a copy, or delete "
            f"{checkpoint.parent} to train from the start"
        )


def _optimizer_state(
    model: Any, optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """Whole states by parameter and key."""
    return {
        f"{name}/{key}": parallel.whole(value)
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


def _load_optimizer(model: Any, optimizers: Iterable[torch.optim.Optimizer], path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(path)
    for name, parameter in model.named_parameters():
        found = {
            key.rpartition("/")[2]: value
            for key, value in state.items()
            if key.rpartition("/")[0] == name
        }
        for optimizer in optimizers:
            if found and any(
                p is parameter for group in optimizer.param_groups for p in group["params"]
            ):
                optimizer.state[parameter] = {
                    key: parallel.like(value, parameter) for key, value in found.items()
                }
