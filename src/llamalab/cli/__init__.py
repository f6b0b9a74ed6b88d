"""The command line: `llamalab VERB`. Parsing and printing; everything else is done by the floors below."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    wanted = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's background job ignores it
    if wanted:  # while Python reads our code, and when it is done with it, Ctrl-C ends the process without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llamalab.cli.app import INTERRUPTED, run

    try:
        if wanted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    if wanted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)
