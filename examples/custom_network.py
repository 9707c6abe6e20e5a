"""A network of your own: an encoder registered with sample-factory, trained by FixPO's program.

    python examples/custom_network.py --env=gym_CartPole-v1 --preset=laptop --experiment=fourier
    python -m sf_fixpo.evaluate train_dir/fourier       # the run remembers this script, which registers the encoder again
    python -m sf_fixpo.audit train_dir/fourier          # of a run with --audit_every=N

Dropout, batch normalisation, a core of your own: whatever it has, the trust region holds on the function that the actors play.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.model.encoder import Encoder
from torch import Tensor, nn

from sf_fixpo.train import main


class FourierEncoder(Encoder):
    """Sines and cosines of random projections of the observation, then a layer (Tancik et al. 2020)."""

    def __init__(self, cfg: Any, obs_space: Any, features: int = 64):
        """Makes the layers.

        Args:
            cfg: sample-factory's settings.
            obs_space: a dict space whose `obs` is a vector.
            features: frequencies, and size of the output.
        """
        super().__init__(cfg)
        self.register_buffer("frequencies", torch.randn(obs_space["obs"].shape[0], features))
        self.layer = nn.Linear(2 * features, features)

    def forward(self, obs_dict: dict[str, Tensor]) -> Tensor:
        """[B, features] of the observations `obs` [B, O]."""
        angles = 2 * math.pi * 0.1 * obs_dict["obs"] @ self.frequencies
        return torch.tanh(self.layer(torch.cat([angles.sin(), angles.cos()], dim=-1)))

    def get_out_size(self) -> int:
        """Size of the output."""
        return self.layer.out_features


def make_encoder(cfg: Any, obs_space: Any) -> Encoder:
    """In sample-factory's form; a function of the module, because it is sent to other processes."""
    return FourierEncoder(cfg, obs_space)


# At import, so that the processes of a run, which import this file, register it too.
global_model_factory().register_encoder_factory(make_encoder)

if __name__ == "__main__":
    sys.exit(main())
