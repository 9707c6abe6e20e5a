"""Sweeps: what to run (plain Python, in `sf_fixpo.launcher.sweeps`) and where (a backend for each kind of cluster).

Nothing here imports the algorithm: a launcher only starts `python -m sf_fixpo.train` with flags and watches how it ends.
"""
