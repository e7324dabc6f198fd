"""`python -m dashboards.source`: build the dashboards into the folder above, or say what is out of date there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvmon.dashboards.source.build import SOURCES, built, differing, write
from kvmon.dashboards.source.trouble import SourceError

_HERE = Path(__file__).resolve().parents[1]


def main() -> int:
    """0: done, or nothing to do; 1: out of date; 3: a source cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.source", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a file is out of date")
    parser.add_argument("--sources", type=Path, default=SOURCES, metavar="DIR", help="where the YAML is")
    parser.add_argument("--out", type=Path, default=_HERE, metavar="DIR", help="where the JSON goes")
    options = parser.parse_args()
    try:
        texts = built(options.sources)
        changed = differing(texts, options.out) if options.check else write(texts, options.out)
    except SourceError as error:
        print(f"dashboards: {error}", file=sys.stderr)
        return error.exit_code
    for name in changed:
        if options.check:
            print(f"dashboards: {name} is not what its source says: run 'python -m dashboards.source'", file=sys.stderr)
        else:
            print(f"{options.out / name} written")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
