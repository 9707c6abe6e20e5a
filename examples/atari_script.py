"""sample-factory's own Atari script, on the games in the wheel of ale-py 0.10: Gymnasium 0.29 knows only older ones by itself.

pip install ale-py==0.10.1
fixpo-run examples/atari_script.py --env=atari_pong

Every process of a run imports this file, and with it the games.
"""

import sys

import ale_py  # noqa: F401 - registers the games
from sf_examples.atari.train_atari import main

if __name__ == "__main__":
    sys.exit(main())
