"""`kvmon workload`: synthetic request traffic as a trace.

Wiring only: options into one description of traffic, a workload into a file. Nothing heavy is imported before the verb
runs.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from kvmon.cli.output_file import output_option
from kvmon.errors import ConfigError
from kvmon.units import format_count

if TYPE_CHECKING:
    from kvmon.serving.workload import Workload
    from kvmon.serving.workloads import Arrivals, Patience, SharedPrefixes

__all__ = ["command"]

_RATE_PER_S = 4.0
_WIDTH = 80


@click.command("workload")
@click.option("--kind", default="requests", show_default=True, help="requests, chats or agents.")
@click.option("--requests", type=int, default=1000, show_default=True, help="How many requests in all.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same traffic.")
@click.option(
    "--lengths", help="A name, or PROMPT/OUTPUT as two distributions.  [default: sharegpt; agents agent-steps]"
)
@click.option("--max-tokens", type=int, help="Longest sequence.  [default: by lengths and kind, see --list]")
@click.option(
    "--limit", type=int, help="Most tokens that any request may generate.  [default: what --max-tokens leaves]"
)
@click.option("--arrivals", default="poisson", show_default=True, help="poisson, bursty, closed-loop or at-once.")
@click.option("--rate", type=float, help="Requests, chats or tasks that begin a second.  [default: 4]")
@click.option("--cv", type=float, help="bursty: coefficient of variation of the gaps, such as 3.")
@click.option("--clients", type=int, help="closed-loop: how many.")
@click.option("--think", type=float, help="closed-loop: mean seconds before a client asks again.  [default: 0]")
@click.option("--steps", help="chats, agents: requests of each, a distribution.  [default: by kind, see --list]")
@click.option("--pause", type=float, help="chats, agents: mean seconds between them.  [default: by kind, see --list]")
@click.option("--prefixes", type=int, help="How many shared prefixes there are.  [default: none; agents 1]")
@click.option("--prefix-tokens", type=int, help="How long each of them is.  [agents: 4000]")
@click.option("--zipf", type=float, help="Their popularity: 0 alike, 1 as usual.  [default: 1]")
@click.option("--prefix-share", type=float, help="Share of requests, chats or tasks that have one.  [default: 1]")
@click.option("--class", "class_id", type=int, help="Class of all requests.  [default: requests 0, chats 1, agents 2]")
@click.option("--class-by-prefix", is_flag=True, help="The class is the number of the shared prefix, as for tenants.")
@click.option("--abort-share", type=float, help="Share of the requests whose client hangs up.  [default: 0]")
@click.option("--patience", type=float, help="Mean seconds until it does.")
@output_option("-o", "--output", help="The file to write, X.csv.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--list", "list_", is_flag=True, help="List kinds, lengths, distributions and arrivals, and end.")
def command(
    kind: str,
    requests: int,
    seed: int,
    lengths: str | None,
    max_tokens: int | None,
    limit: int | None,
    arrivals: str,
    rate: float | None,
    cv: float | None,
    clients: int | None,
    think: float | None,
    steps: str | None,
    pause: float | None,
    prefixes: int | None,
    prefix_tokens: int | None,
    zipf: float | None,
    prefix_share: float | None,
    class_id: int | None,
    class_by_prefix: bool,
    abort_share: float | None,
    patience: float | None,
    output: Path | None,
    force: bool,
    list_: bool,
) -> None:
    """Write a request trace in the plain CSV format, for `kvmon simulate` and for engines.

    Everything is drawn from --seed. Without -o the trace goes to standard output.
    """
    if list_:
        click.echo(_names())
        return
    from kvmon.serving.traces.writing import plain_lines, write_plain
    from kvmon.serving.workloads import Traffic, generate

    if force and output is None:
        raise ConfigError("--force replaces a file: it goes with -o")
    traffic = Traffic(
        requests=requests,
        seed=seed,
        kind=kind,
        arrivals=_arrivals(arrivals, rate, cv, clients, think),
        lengths=lengths,
        steps=steps,
        pause_s=pause,
        prefixes=_prefixes(prefixes, prefix_tokens, zipf, prefix_share),
        max_tokens=max_tokens,
        limit=limit,
        class_id=class_id,
        class_by_prefix=class_by_prefix,
        patience=_patience(abort_share, patience),
    )
    workload = generate(traffic)
    if output is None:
        click.echo("".join(plain_lines(workload)), nl=False)
    else:
        write_plain(workload, output, force=force)
        click.echo(_summary(output, workload))


def _arrivals(name: str, rate: float | None, cv: float | None, clients: int | None, think: float | None) -> Arrivals:
    """The arrivals that the options describe; an option of other arrivals is an error."""
    from kvmon.serving.workloads import ARRIVALS, AtOnce, ClosedLoop, OpenLoop
    from kvmon.serving.workloads.parameters import known

    known(name, ARRIVALS, "arrivals")
    for option, value, owners in (
        ("--rate", rate, ("poisson", "bursty")),
        ("--cv", cv, ("bursty",)),
        ("--clients", clients, ("closed-loop",)),
        ("--think", think, ("closed-loop",)),
    ):
        if value is not None and name not in owners:
            raise ConfigError(f"{option} belongs to --arrivals {' or '.join(owners)}: leave it out, or choose that")
    if name == "at-once":
        return AtOnce()
    if name == "closed-loop":
        if clients is None:
            raise ConfigError("a closed loop needs its --clients: say how many")
        return ClosedLoop(clients, 0.0 if think is None else think)
    if name == "bursty" and cv is None:
        raise ConfigError("bursts need their --cv: above 1 for bursts, such as 3")
    return OpenLoop(_RATE_PER_S if rate is None else rate, 1.0 if cv is None else cv)


def _prefixes(count: int | None, tokens: int | None, zipf: float | None, share: float | None) -> SharedPrefixes | None:
    """The shared prefixes that the options describe; None: as the kind has it."""
    from kvmon.serving.workloads import SharedPrefixes

    if count is None and tokens is None and zipf is None and share is None:
        return None
    if count is None or tokens is None:
        raise ConfigError("shared prefixes need a number and a length: give --prefixes and --prefix-tokens")
    return SharedPrefixes(count, tokens, 1.0 if zipf is None else zipf, 1.0 if share is None else share)


def _patience(share: float | None, seconds: float | None) -> Patience | None:
    from kvmon.serving.workloads import Patience

    if share is None and seconds is None:
        return None
    if share is None or seconds is None:
        raise ConfigError("who hangs up, and when: give --abort-share and --patience together")
    return Patience(share, seconds)


def _names() -> str:
    """Every name that an option takes, with a line each."""
    from kvmon.serving.workloads import ARRIVALS, DISTRIBUTIONS, KINDS, LENGTHS

    rows: list[tuple[str, str]] = [("kinds", "")]
    for name, kind in KINDS.items():
        detail = f"; steps {kind.steps}, pause {kind.pause_s:g} s, {kind.lengths}" if kind.conversation else ""
        rows.append((f"  {name}", kind.what + detail))
    rows.append(("lengths", ""))
    rows += [(f"  {name}", f"{what}; {spec}, at most {most}") for name, (spec, most, what) in LENGTHS.items()]
    rows.append(("distributions, for --steps and for --lengths PROMPT/OUTPUT", ""))
    rows += [(f"  {form}", what) for form, what in DISTRIBUTIONS.values()]
    rows.append(("arrivals", ""))
    rows += [(f"  {name}", what) for name, what in ARRIVALS.items()]
    lines = []
    for name, what in rows:
        lines += wrap(what, initial_indent=f"{name:<21} ", subsequent_indent=" " * 22, width=_WIDTH) or [name]
    return "\n".join(lines)


def _summary(path: Path, workload: Workload) -> str:
    prompt, output = workload.prompt_tokens.mean(), workload.output_tokens.mean()
    follow = int((~workload.independent).sum())
    parts = [
        f"{path}: {format_count(len(workload))} requests",
        f"mean {prompt:,.0f} tokens in and {output:,.0f} out",
    ]
    if follow:
        parts.append(f"{format_count(follow)} follow another one")
    return ", ".join(parts)
