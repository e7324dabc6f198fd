"""The adapter of vLLM: by the plugin that vLLM loads by itself where KVMON_DIR is set, or by a call.

    export KVMON_DIR=/run/kvmon; vllm serve ...                        every engine core of the server
    recording = kvmon.attach(llm, directory="/run/kvmon")              an LLM with its engine core in this process
    kvmon.attach("vllm", directory="/run/kvmon")                       every one that this process builds from now on

Importing this does not import vLLM.
"""

from __future__ import annotations

from kvmon.adapters.vllm.adapter import ADAPTER

__all__ = ["ADAPTER"]
