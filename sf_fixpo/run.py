"""Runs a training script that was written for sample-factory, unchanged, with FixPO.

    python -m sf_fixpo.run MODULE [flags of the script]       or fixpo-run; MODULE may be a file, such as train_mine.py
    python -m sf_fixpo.run sf_examples.train_gym_env --env=CartPole-v1 --eps_kl=0.2

The script's flags gain those of FixPO. Its result is played by `fixpo-evaluate` and `fixpo-enjoy`, and audited by `fixpo-audit`.

Exit status: the script's own, which is that of training for a script that hands it on; 1 where it never calls run_rl; 2 where
there is no such script.
"""

from __future__ import annotations

import sys
from typing import Any

from sf_fixpo import cli
from sf_fixpo.running.finding import ScriptError, find_script

BAD_INPUT = 2
_called = False


def take_over() -> None:
    """From here on sample-factory's `run_rl` and `parse_sf_args` are ours, for whoever imports them."""
    import sample_factory.cfg.arguments as sf_arguments
    import sample_factory.train as sf_train

    from sf_fixpo import api

    def run_rl(cfg: Any) -> int:
        global _called
        _called = True
        return api.run_rl(cfg)

    sf_train.run_rl = run_rl
    sf_arguments.parse_sf_args = api.parse_sf_args


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print("fixpo-run: name a script: a module, or a file that ends in .py; --help says more", file=sys.stderr)
        return BAD_INPUT
    if argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if argv[0] == "--version":
        print(cli.version_line())
        return 0
    name, *flags = argv
    script = {"path" if name.endswith(".py") else "module": name, "argv": flags}
    try:
        find_script(script)
    except ScriptError as exc:
        print(f"fixpo-run: {exc}", file=sys.stderr)
        return BAD_INPUT
    take_over()
    from sf_fixpo.running.scripts import run_script  # with torch behind it, as `take_over`: seconds, for a script that is there

    status: Any = 0
    try:
        run_script(script)
    except SystemExit as exc:
        status = exc.code
    if not _called and not {"-h", "--help"} & set(flags):
        print(
            f"fixpo-run: {name} ended without a call of run_rl: nothing was trained; it must come to that call", file=sys.stderr
        )
        return status if isinstance(status, int) and status else 1
    if status is None or isinstance(status, int):
        return status or 0
    print(status, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
