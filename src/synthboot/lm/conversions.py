"""What transformers prepares before it loads or saves its first model: a thousand patterns, which a
process compiles once.

The fork server imports this, so that no worker has to; nobody calls it.
"""

from __future__ import annotations

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("qwen3")
