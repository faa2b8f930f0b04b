"""What the fork server imports before all else: as it ends, it removes the folder of its socket.

That is the work of the process that started it, which cannot do it once it was killed. Nobody calls
this.
"""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from multiprocessing import forkserver


@atexit.register
def _remove_socket() -> None:
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    with suppress(OSError):  # removed already, as a rule
        if address:
            os.unlink(address)
            os.rmdir(os.path.dirname(address))
