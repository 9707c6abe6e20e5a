"""Sweeps: what to run (plain Python descriptions in `launcher.sweeps`) and where (one backend each for a kind of cluster).

Nothing here imports the algorithm: a launcher only starts `python -m sf_fixpo.train` with flags and watches how it ends.
"""
