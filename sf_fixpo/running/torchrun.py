"""torchrun with an exit status: `python -m sf_fixpo.running.torchrun [torchrun's flags] COMMAND...`.

torchrun itself ends with 1, whatever its ranks end with. Here it is the status of the rank that failed first (128 + signal where
one killed it), and 75 where torchrun was told to end: its ranks had 30 seconds to save. SIGUSR1 is passed on like other signals.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

_PREEMPTED = 75
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    try:
        run(parse_args([f"--signals-to-handle={_SIGNALS}", *(sys.argv[1:] if argv is None else argv)]))
    except SignalException:
        return _PREEMPTED
    except ChildFailedError as exc:
        rank, failure = exc.get_first_failure()
        print(f"rank {rank} ended first, with exit code {failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
