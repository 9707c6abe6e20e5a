"""Other systems beside ours on the same tasks, each with its published settings. `pip install -e '.[peers]'` has all of them.

`tasks` are the environments, which write down their episodes themselves, whoever plays; `others` trains by another system;
`python -m benchmarks.peers` runs all, one after the other, and makes the table.
"""
