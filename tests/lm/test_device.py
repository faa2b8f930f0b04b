"""A step of sampling and of training on a device that is not there.

Fake tensors carry a device and no values: a step that mixes devices raises, and so does one that asks for a value, for which a
GPU would have to be waited for. Workers run the steps, since a process registers such a device for good.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorDeviceMismatchError, FakeTensorMode

from synthboot import pool

DEVICE = "gpu"


class Guard(torch._C._acc.DeviceGuard):  # type: ignore[name-defined]
    """One device, which is always the current one."""

    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class Hooks(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined]
    """What torch's engine asks of a device before a backward pass."""

    def has_primary_context(self, device_id: int) -> bool:
        return True

    def is_available(self) -> bool:
        return True


class Module:
    """What torch asks of a device's module."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])


def model() -> Any:
    """A small model whose weights are on the device."""
    from tests.lm.conftest import small_model

    built, moved = small_model(), {}
    for module in built.modules():
        for name, value in module._parameters.items():
            if value is not None:  # tied ones stay tied
                there = moved.setdefault(id(value), torch.nn.Parameter(torch.empty(value.shape, device=DEVICE)))
                module._parameters[name] = there
        for name, value in module._buffers.items():
            module._buffers[name] = None if value is None else torch.empty(value.shape, device=DEVICE)
    return built


def sampling(spoil: str) -> None:
    """Rows are filled, decoded, cut and decoded again."""
    from synthboot.lm.sampling import embedded, protocol

    engine = embedded.EmbeddedSampler(model(), 0, protocol.Sampling(temperature=1.0, top_p=0.9, batch=32), graphs=False)
    asked = [protocol.Request(tuple(range(1, 9 + i % 3)), i, 20) for i in range(40)]
    if spoil == "waits":
        engine.temperature = torch.ones((), device=DEVICE)  # type: ignore[assignment]
    with torch.inference_mode():
        state = embedded.ContinuousBatch(engine, asked, 64, 32)
        state.refill()
        if spoil == "mixes":
            state.rows.seed = torch.zeros(32, dtype=torch.int64)
        state.advance()
        state.keep(np.arange(24))
        state.advance()
    assert state.rows.token.device.type == DEVICE


def training(spoil: str) -> None:
    """A step of three micro-batches in bfloat16, some targets left out, documents packed or not."""
    from synthboot.lm import train
    from synthboot.lm.batches import IGNORE, Batch
    from synthboot.lm.loss import Loss
    from synthboot.lm.parallel import ALONE

    tokens = np.arange(6 * 16).reshape(6, 16) % 280
    targets = np.where(tokens % 5 == 0, IGNORE, tokens)
    settings = train.Settings(lr=1e-3, weight_decay=0.1, warmup_steps=1, eval_steps=(), micro_batch_tokens=32)
    module = Loss(model(), torch.bfloat16, z_loss=1e-4)
    there = torch.device("cpu" if spoil == "mixes" else DEVICE)
    for segments in (None, tokens // 40):
        loss, norm = train.forward_backward(
            module, Batch(tokens, targets, segments, tokens if segments is None else segments), settings, ALONE, there
        )
        if spoil == "waits":
            float(loss)
    assert loss.device.type == norm.device.type == DEVICE


def test_a_step_stays_on_its_device_and_does_not_wait_for_it() -> None:
    expected = {"": "none", "mixes": "FakeTensorDeviceMismatchError", "waits": "DataDependentOutputException"}
    assert list(pool.imap(registered, (), (sampling, training), 2)) == [expected, expected]


def registered() -> Callable[[Callable[[str], None]], dict[str, str]]:
    """Register the device; then a step as it is and spoiled, and the names of the errors."""
    torch.utils.rename_privateuse1_backend(DEVICE)
    torch._C._acc.register_python_privateuseone_device_guard(Guard())
    torch._C._acc.register_python_privateuseone_hook(Hooks())
    torch._register_device_module(DEVICE, Module)
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

    def errors(step: Callable[[str], None], _: torch.library.Library = library) -> dict[str, str]:
        found = {}
        for spoil in ("", "mixes", "waits"):
            found[spoil] = "none"
            with FakeTensorMode():
                try:
                    step(spoil)
                except (FakeTensorDeviceMismatchError, DataDependentOutputException) as raised:
                    found[spoil] = type(raised).__name__
        return found

    return errors
