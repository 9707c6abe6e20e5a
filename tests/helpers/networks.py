"""Networks that users bring: each once made a check of an older learner pass what actors then did not do, or made it fail."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.model.actor_critic import ActorCriticSharedWeights
from sample_factory.model.core import ModelCore
from sample_factory.model.encoder import Encoder
from torch import nn
from torch.nn.utils.rnn import PackedSequence

WIDTH = 16


class UserEncoder(Encoder):
    """A linear layer on the flattened observation `obs`, and what subclasses make of it."""

    def __init__(self, cfg, obs_space):
        super().__init__(cfg)
        self.size = int(torch.tensor(obs_space["obs"].shape).prod())
        self.first = nn.Linear(self.size, WIDTH)
        self.make_parts()

    def make_parts(self) -> None:
        """Modules beside the first layer."""

    def get_out_size(self) -> int:
        return WIDTH

    def after(self, x):
        return torch.tanh(x)

    def forward(self, obs_dict):
        obs = obs_dict["obs"]
        return self.after(self.first(obs.reshape(len(obs), -1)))


class Viewing(UserEncoder):
    """Calls `.view` on its input, as sample-factory's own example of a custom encoder does."""

    def forward(self, obs_dict):
        return torch.tanh(self.first(obs_dict["obs"].view(-1, self.size)))


class ViewingConv(UserEncoder):
    """A convolution, and `.view` on its input and on what comes out."""

    def make_parts(self):
        self.conv = nn.Conv2d(3, 2, 5, stride=4)
        self.second = nn.Linear(2 * 3 * 3, WIDTH)

    def forward(self, obs_dict):
        obs = obs_dict["obs"]
        whole = self.first(obs.view(-1, self.size))
        return torch.tanh(whole + self.second(self.conv(obs).view(len(obs), -1)))


class Dropping(UserEncoder):
    def make_parts(self):
        self.dropout = nn.Dropout(0.5)

    def after(self, x):
        return self.dropout(torch.tanh(x))


class BatchNormed(UserEncoder):
    def make_parts(self):
        self.norm = nn.BatchNorm1d(WIDTH)

    def after(self, x):
        return torch.tanh(self.norm(x))


class Tied(UserEncoder):
    """One weight under two names."""

    def make_parts(self):
        self.second, self.third = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.third.weight = self.second.weight

    def after(self, x):
        return torch.tanh(self.third(torch.tanh(self.second(torch.tanh(x)))))


class Counting(UserEncoder):
    """Buffers that are no floats, one of which training moves."""

    def make_parts(self):
        self.register_buffer("order", torch.randperm(WIDTH))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def after(self, x):
        if self.training:
            self.calls += 1
        return torch.tanh(x[:, self.order])


class Branching(UserEncoder):
    """Another function while it trains."""

    def make_parts(self):
        self.extra = nn.Linear(WIDTH, WIDTH)

    def after(self, x):
        return torch.tanh(self.extra(x) if self.training else x)


class Noisy(UserEncoder):
    """Draws noise whenever it acts."""

    def after(self, x):
        return torch.tanh(x + 0.5 * torch.randn_like(x))


class ResidualCore(ModelCore):
    """A core of a policy without memory: sample-factory runs it with `use_rnn=False` too."""

    def __init__(self, cfg, input_size):
        super().__init__(cfg)
        self.layer = nn.Linear(input_size, input_size)
        self.core_output_size = input_size

    def forward(self, head_output, rnn_states):
        return head_output + 3.0 * torch.tanh(self.layer(head_output)), rnn_states


class SequenceCore(ModelCore):
    """Treats a sequence otherwise than single steps."""

    def __init__(self, cfg, input_size):
        super().__init__(cfg)
        self.layer = nn.Linear(input_size, input_size)
        self.core_output_size = input_size

    def forward(self, head_output, rnn_states):
        if isinstance(head_output, PackedSequence):
            return head_output._replace(data=self.layer(head_output.data)), rnn_states
        return head_output, rnn_states


class OwnForward(ActorCriticSharedWeights):
    """Acts by a `forward` that is not the three parts."""

    def forward(self, normalized_obs_dict, rnn_states, values_only=False):
        return super().forward({"obs": -normalized_obs_dict["obs"]}, rnn_states, values_only)


@contextmanager
def registered(encoder=None, core=None):
    """sample-factory's registry with a user's parts in it."""
    factory = global_model_factory()
    before = factory.make_model_encoder_func, factory.make_model_core_func
    if encoder is not None:
        factory.register_encoder_factory(encoder)
    if core is not None:
        factory.register_model_core_factory(core)
    try:
        yield
    finally:
        factory.make_model_encoder_func, factory.make_model_core_func = before
