"""An empty room of MiniGrid as an image: `--env=gym_minigrid_pixels:EmptyPixels`."""

from __future__ import annotations

import gymnasium
from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper

# of the image's 40 x 40 pixels, five by five tiles
TILE_PIXELS = 8
MAX_STEPS = 60


class EmptyPixels(gymnasium.Wrapper):
    """The agent, turned and placed at random, is to find the green tile in the corner; +1, less what it took, where it does.

    Args:
        env_id: A room of MiniGrid.
        render_mode: None or "rgb_array".
    """

    def __init__(self, env_id="MiniGrid-Empty-Random-5x5-v0", render_mode=None):
        # the checker of Gymnasium 0.29 warns of an observation that MiniGrid itself declares otherwise
        room = gymnasium.make(env_id, render_mode=render_mode, max_episode_steps=MAX_STEPS, disable_env_checker=True)
        super().__init__(ImgObsWrapper(RGBImgObsWrapper(room, tile_size=TILE_PIXELS)))
