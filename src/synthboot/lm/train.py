"""The one training loop: base, tune and every arm use it.

Killed at any step, it resumes from its last checkpoint and ends with the same bytes on a CPU: batches are a pure function
of the step, and a checkpoint holds the weights, the optimizer and the curve so far. Every checkpoint is a Hugging Face
folder. Left in the end: `last/`, `best/` (least validation loss) and `curve.json`.

Source: arXiv:2509.15248, AdamW, warm-up then cosine. Deviation: the peak rate is a plain one, not a muP-scaled 1e-2.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from synthboot.data.artifacts import Progress, committed_folder, read_json, silent, write_json
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import TrainingError
from synthboot.lm import model as models
from synthboot.lm.batches import IGNORE, Batch, Batches


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
    model: Any,
    batches: Batches,
    settings: Settings,
    validate: Callable[[Any], float],
    folder: Path,
    tokenizer: Tokenizer,
    progress: Progress = silent,
) -> Curve:
    """Train `model` in place, from where `folder` left off; returns the curve.

    Raises TrainingError where the loss is not finite, naming the step and the checkpoint to go back to.
    """
    finished = folder / "curve.json"
    if finished.exists():
        return Curve(**read_json(finished))
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(model, settings)
    curve = _resume(model, optimizer, folder)
    if curve is None:
        curve = Curve()
        if 0 in settings.eval_steps:
            _evaluate(model, optimizer, batches, validate, curve, folder, tokenizer)
    losses: list[float] = []
    started, first = time.monotonic(), curve.step
    while curve.step < batches.steps and not _exhausted(curve, settings):
        loss, norm = _step(model, optimizer, batches.batch(curve.step), settings, _lr(curve.step, batches.steps, settings))
        losses.append(loss)
        curve.step += 1
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(
                f"{folder}: loss {loss} at step {curve.step} of {batches.steps}; lower the learning rate; "
                f"the last good checkpoint is {_latest(folder) or 'none'}"
            )
        rate = (curve.step - first) * batches.batch_tokens / max(1e-9, time.monotonic() - started)
        progress(curve.step / batches.steps, f"loss {loss:.3f}, {rate:,.0f} tokens/s")
        if curve.step in settings.eval_steps or curve.step == batches.steps:
            tokens = curve.step * batches.batch_tokens
            curve.train.append([tokens, sum(losses) / len(losses), norm, _lr(curve.step - 1, batches.steps, settings)])
            losses = []
            _evaluate(model, optimizer, batches, validate, curve, folder, tokenizer)
    return _finish(model, curve, folder, tokenizer)


def _exhausted(curve: Curve, settings: Settings) -> bool:
    return settings.patience is not None and curve.evals_since_best >= settings.patience


def _lr(step: int, steps: int, settings: Settings) -> float:
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    low = settings.min_lr_fraction
    return settings.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def _optimizer(model: Any, settings: Settings) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=True)


def _step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch, settings: Settings, lr: float) -> tuple[float, float]:
    """One optimizer step; returns the mean loss over the batch's targets and the gradient norm before clipping."""
    model.train()
    device = next(model.parameters()).device
    rows, width = batch.inputs.shape
    micro = max(1, (settings.micro_batch_tokens or rows * width) // width)
    targets = int((batch.targets != IGNORE).sum())
    total = 0.0
    for start in range(0, rows, micro):
        part = slice(start, start + micro)
        with _autocast(device):
            logits = model(
                input_ids=torch.from_numpy(batch.inputs[part]).to(device),
                use_cache=False,
                **_masks(batch, part, device),
            ).logits
        wanted = torch.from_numpy(batch.targets[part]).to(device)
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="sum") / targets
        loss.backward()
        total += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


def _masks(batch: Batch, part: slice, device: torch.device) -> dict[str, Any]:
    """The attention mask and positions of packed rows; nothing for rows that are one run of text."""
    if batch.segments is None or batch.positions is None:
        return {}
    segments = torch.from_numpy(batch.segments[part]).to(device)
    width = segments.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    mask = (segments[:, None, :, None] == segments[:, None, None, :]) & causal
    return {"attention_mask": mask, "position_ids": torch.from_numpy(batch.positions[part]).to(device)}


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 on a GPU; on a CPU without matrix units it is slower than fp32."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def _evaluate(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    validate: Callable[[Any], float],
    curve: Curve,
    folder: Path,
    tokenizer: Tokenizer,
) -> None:
    """Take the validation loss, keep the model if it is the best, and write a checkpoint that can be resumed.

    The older best and the older checkpoint go only once the new checkpoint, which names its best, is in place.
    """
    loss = validate(model)
    curve.validation.append([curve.step * batches.batch_tokens, loss])
    if curve.step and loss < curve.best_loss:
        curve.best_step, curve.best_loss, curve.evals_since_best = curve.step, loss, 0
        models.save(model, folder / f"best-{curve.step:08d}", tokenizer)
    elif curve.step:
        curve.evals_since_best += 1
    current = folder / f"checkpoint-{curve.step:08d}"
    with committed_folder(current) as temporary:
        models.export(model, temporary, tokenizer)
        _save_optimizer(model, optimizer, temporary / "optimizer.safetensors")
        write_json(temporary / "curve.json", vars(curve))
    for old in folder.iterdir():
        stale_best = old.name.startswith("best-") and old.name != f"best-{curve.best_step:08d}"
        if stale_best or old.name.endswith(".tmp") or (old.name.startswith("checkpoint-") and old != current):
            shutil.rmtree(old)


def _latest(folder: Path) -> Path | None:
    found = sorted(p for p in folder.glob("checkpoint-*") if not p.name.endswith(".tmp"))
    return found[-1] if found else None


def _resume(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> Curve | None:
    latest = _latest(folder)
    if latest is None:
        return None
    models.load_weights(model, latest)
    _load_optimizer(model, optimizer, latest / "optimizer.safetensors")
    try:
        return Curve(**json.loads((latest / "curve.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{latest}: unreadable checkpoint ({error}); delete this folder to go on without it") from None


def _save_optimizer(model: Any, optimizer: torch.optim.Optimizer, path: Path) -> None:
    from safetensors.torch import save_file

    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}/{key}"] = value.detach().cpu().contiguous()
    save_file(state, path)


def _load_optimizer(model: Any, optimizer: torch.optim.Optimizer, path: Path) -> None:
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own kind
        raise TrainingError(f"{path}: unreadable checkpoint ({error}); delete {path.parent} to go on without it") from None
    for name, parameter in model.named_parameters():
        found = {key.rpartition("/")[2]: value for key, value in state.items() if key.rpartition("/")[0] == name}
        if found:
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in found.items()}


def _finish(model: Any, curve: Curve, folder: Path, tokenizer: Tokenizer) -> Curve:
    """Leave `last`, `best` and `curve.json`, in an order that a kill between any two cannot spoil."""
    models.save(model, folder / "last", tokenizer)
    best = folder / f"best-{curve.best_step:08d}"
    if best.exists():
        shutil.rmtree(folder / "best", ignore_errors=True)
        best.rename(folder / "best")
    write_json(folder / "curve.json", vars(curve))
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old)
    return curve
