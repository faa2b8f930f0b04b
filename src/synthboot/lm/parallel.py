"""Several processes that train one model, started by torchrun.

Each has a copy of the model (DDP) or a shard of its weights (FSDP2).

A step's rows are dealt out over the processes and its loss is that of one process up to rounding.
Checkpoints hold whole weights and whole optimizer states, gathered when they are written, so a run
goes on with any number of processes, sharded or not, and every save is a Hugging Face folder.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from synthboot.errors import ConfigError
from synthboot.lm.loss import Loss

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Group:
    """The processes that train together, and which of them this is."""

    rank: int = 0
    size: int = 1
    shard: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def sum(self, value: float) -> float:
        """The sum over all processes."""
        if self.size == 1:
            return value
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total)
        return float(total)


ALONE = Group()

ROWS = "batch_tokens / seq_len (of optim and model, in tuning of tune)"


def rank() -> int:
    """This process' number among those that torchrun started; 0 where it did not."""
    return int(os.environ.get("RANK", "0"))


def join(device: torch.device, shard: bool) -> Group:
    """Join the other processes, where torchrun started this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not torch.distributed.is_initialized():
        patience = timedelta(minutes=10)
        if device.type == "cuda":
            # or collectives of all processes would meet on the first GPU
            torch.cuda.set_device(device)
            torch.distributed.init_process_group("nccl", timeout=patience, device_id=device)
        else:
            torch.distributed.init_process_group("gloo", timeout=patience)
    return Group(rank(), size, shard)


def share(rows: int, group: Group, rows_are: str = ROWS) -> slice:
    """Which rows of a step are this process'; `rows_are` says which settings make them.

    Raises ConfigError where they cannot be dealt out evenly.
    """
    if rows % group.size:
        raise ConfigError(
            f"engine.processes: a step of {rows} rows cannot be shared by {group.size} processes; "
            f"make {rows_are} a multiple of {group.size}"
        )
    # every `size`-th, so that each process gets its part of the long rows, which come first
    return slice(group.rank, None, group.size)


def wrap(loss: Loss, group: Group) -> torch.nn.Module:
    """The module to call: the loss itself, a copy in step with the others', or a shard of it."""
    if group.size == 1:
        return loss
    if not group.shard:
        return torch.nn.parallel.DistributedDataParallel(loss)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(loss.parameters()).device.type, (group.size,))
    # block by block, so that only one block's weights are whole at a time
    for block in blocks(loss.model):
        fully_shard(block, mesh=mesh)
    # and then what is left: embedding, last norm, output matrix
    fully_shard(loss, mesh=mesh)
    return loss


def accumulating(module: torch.nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
    """Gradients are exchanged once a step, with its last forward and backward pass."""
    if isinstance(module, torch.nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()  # DDP
    if hasattr(module, "set_requires_gradient_sync"):
        cast(Any, module).set_requires_gradient_sync(last)  # FSDP2
    return contextlib.nullcontext()


def gathered(value: torch.Tensor) -> torch.Tensor:
    """A tensor put together from its shards, on the CPU; all processes have to ask."""
    if isinstance(value, DTensor):
        value = cast(Any, value).full_tensor()
    return value.detach().cpu().contiguous()


def placed_as(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor sharded and placed as `parameter` is."""
    value = value.to(parameter.device)
    # an optimizer's step count is a scalar, the same for every shard
    if not isinstance(parameter, DTensor) or value.dim() == 0:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


class ScoringView:
    """A sharded model as scoring wants it: called with tokens, it gives logits."""

    def __init__(self, module: torch.nn.Module, config: PretrainedConfig) -> None:
        self._module = module
        self.config = config
        self.parameters = module.parameters
        self.eval = module.eval
        self.train = module.train

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""
        return self._module.training

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        """The model's output; all processes have to call."""
        # through the wrapper: it is the wrapper that gathers the shards of a block before it runs
        return self._module(input_ids)

    __call__ = forward


def blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The repeated blocks of a causal LM: the longest list of modules in it.

    Raises ConfigError where there is none.
    """
    lists: list[list[torch.nn.Module]] = []
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            lists.append(list(module))
    if not lists:
        kind = model.config.model_type
        raise ConfigError(
            f"engine: {kind} has no list of blocks; set engine.shard=false and engine.compile=off"
        )
    return max(lists, key=len)
