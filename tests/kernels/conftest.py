"""Every test of the loops, with those of each kind of processor that this machine has."""

import pytest

from synthboot.kernels import library

KINDS = library.KINDS[: library.KINDS.index(library.kind()) + 1] if library.available() else library.KINDS[:1]


@pytest.fixture(autouse=True, params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the loops of this kind."""
    monkeypatch.setenv("SYNTHBOOT_KERNELS", request.param)
