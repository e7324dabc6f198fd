"""What vLLM calls by the entry point `vllm.general_plugins`, in every process of a server.

Without KVMON_DIR it does nothing at all. With it, the class of schedulers is patched once, and a recording begins in
the process that builds one: front ends and workers hold no allocator. No thread, no socket and no file before that.
vLLM calls plugins unguarded, so nothing here may raise.
"""

from __future__ import annotations

import os

__all__ = ["register"]


def register() -> None:
    """Record every scheduler that this process builds from now on, as KVMON_DIR and its sisters say; see `settings`."""
    if not os.environ.get("KVMON_DIR", "").strip():
        return
    try:
        from kvmon.adapters.vllm import ADAPTER

        ADAPTER.arm_by_environment(os.environ)
    except Exception as error:
        import logging

        logging.getLogger("vllm.kvmon").warning("kvmon records nothing: %s", error)
