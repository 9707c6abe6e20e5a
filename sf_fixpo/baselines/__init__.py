"""Other algorithms in FixPO's harness, for comparison: the same batches, gate and update rows, bounds of their own or none.

A file an algorithm, with its mathematics beside it where there is some. `registry` has them all by the name that `--algo` takes.
May import `learning`, `algorithm` and `records`.
"""
