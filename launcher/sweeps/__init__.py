"""Sweeps that ship, one module each: `python -m sf_fixpo.launcher.run --run=sf_fixpo.launcher.sweeps.<name>`.

Each has a `RUN_DESCRIPTION`; one that can be searched has a `SEARCH_SPACE` too. Seeds are the outer loop, so that the first seed
of everything is done before the second begins.
"""
