"""How long `cutline --help` takes to start: against `python -c pass`, both as whole processes in interleaved pairs.

It should stay below 25 times that, and import no database, no validation and no plug-in.

    python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from pairs import finish, median_ratio, middle, say_machine, spread, take_pairs, verdict

TARGET = 25.0
HEAVY = {"duckdb", "pyarrow", "pydantic", "numpy", "PIL", "torch", "transformers"}
PLUGIN_FOLDERS = ("cutline.annotators.", "cutline.sources.", "cutline.exports.", "cutline.formats.")

PROBE = """
import json, sys
from cutline.cli.main import main
sys.argv = ["cutline", "--help"]
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted(sys.modules)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=25, help="how often each side is timed")
    chosen = parser.parse_args()
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-startup-") as cache:
        # Compiled modules are there, as after an installation, whatever the environment says.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}

        def seconds(*arguments: str) -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
            return time.perf_counter() - start

        def bare() -> float:
            return seconds("-c", "pass")

        def cutline() -> float:
            return seconds("-m", "cutline", "--help")

        bare(), cutline()  # fill the cache
        pairs = take_pairs(chosen.pairs, bare, cutline, show=False)
    print(f"python -c pass: {1000 * middle(pairs, 0):.1f} ms; cutline --help: {1000 * middle(pairs, 1):.0f} ms")
    fast = verdict("cutline --help / python -c pass", median_ratio(pairs), TARGET, "times", spread(pairs))
    found = forbidden()
    print(f"{'MISSED' if found else 'met   '} imports: {', '.join(found) or 'no library of these: ' + _listed()}")
    finish(fast, not found)


def forbidden() -> list[str]:
    """What `cutline --help` imports and should not: heavy libraries, and plug-ins of Cutline's own."""
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    if code:
        sys.exit(f"cutline --help ended with {code}")
    return [name for name in modules if name in HEAVY or name.startswith(PLUGIN_FOLDERS)]


def _listed() -> str:
    return ", ".join(sorted(HEAVY)) + ", and no plug-in"


if __name__ == "__main__":
    main()
