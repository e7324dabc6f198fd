"""`kvmon engine`: the reference engine, as a server or for a file of requests.

Purpose: the verbs below `engine`, named in one table and imported when they are used. Nothing here knows what they do.
"""

from __future__ import annotations

from kvmon.cli.main import Verb, VerbGroup

__all__ = ["VERBS", "command"]

VERBS = {
    "serve": Verb("kvmon.cli.engine_serve:command", "Serve a model over OpenAI's HTTP interface."),
    "run": Verb("kvmon.cli.engine_run:command", "Answer the requests of a file."),
}

command = VerbGroup(
    VERBS,
    help="The reference engine: a small continuous-batching engine whose KV memory is recorded, on CPU or GPU.",
    epilog="",
)
