"""A recurrent core as a loop over the steps of trajectories, whose state is set to zero where nothing may flow on.

Packed sequences (`sequences`) ask the host for the lengths of all episodes, and their shapes follow them; here every shape is
fixed and all is done on the device, whatever the batch. On a CPU an LSTM of torch's own runs a sequence in one call, by oneDNN,
which the loop's hundreds of small calls take up to five times as long as; it gets the sequences side by side. Values and
gradients are those of the packed call within float32 rounding either way.

Shapes: E trajectories of T steps, n = E T samples (trajectories one after the other), F features, H units, S size of the
recurrent state, L layers.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from sf_fixpo.learning.sequences import Packing, Padded

# What a step of the loop costs beside its products, forward and backward, in products of a weight and a sample: 170 microseconds
# for some forty calls, at 95 GFlop/s (one thread). Sequences side by side may take as much more for what they are filled up with.
_STEP_IN_WEIGHTS = 600_000


def can_unroll(layer: nn.Module) -> TypeGuard[nn.RNNBase]:
    """Whether a layer is one of torch's own whose every setting this module knows; a subclass or a hook may do anything."""
    if not isinstance(layer, nn.RNNBase) or type(layer) not in (nn.LSTM, nn.GRU):
        return False
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(layer.bias) and not (layer.bidirectional or layer.dropout or layer.batch_first or layer.proj_size or hooked)


def run_core(layer: nn.RNNBase, features: Tensor, rnn_states: Tensor, packing: Packing) -> Tensor:
    """Outputs of a layer that `can_unroll`, for whole trajectories, by whichever way is the faster one.

    Args:
        layer: an LSTM or a GRU.
        features: [n, F], with gradient.
        rnn_states: [n, S] recorded before each step, as `unroll` has them.
        packing: of the n samples.

    Returns:
        [n, H], with gradient to features and weights.
    """
    padded = packing.padded if isinstance(layer, nn.LSTM) else None
    if padded is None or _filled(layer, padded, len(features)) > _STEP_IN_WEIGHTS * packing.keep.shape[1]:
        return unroll(layer, features, rnn_states, packing.keep)
    first = torch.where(padded.carried, rnn_states.index_select(0, padded.starts), 0.0)
    # [Q, L 2 H], of each layer h and then c
    h, c = first.view(len(first), layer.num_layers, 2, -1).permute(2, 1, 0, 3)
    x = features.index_select(0, padded.samples.view(-1)).view(*padded.samples.shape, -1)
    outputs, _ = layer(x, (h.contiguous(), c.contiguous()))
    return outputs.view(-1, outputs.shape[-1]).index_select(0, padded.places)


def _filled(layer: nn.RNNBase, padded: Padded, count: int) -> int:
    """Products, a weight of a gate and a sample each, that go to what sequences are filled up with; a layer's."""
    return (padded.samples.numel() - count) * layer.hidden_size * (layer.input_size + layer.hidden_size)


def unroll(layer: nn.RNNBase, features: Tensor, rnn_states: Tensor, keep: Tensor) -> Tensor:
    """Outputs of a layer that `can_unroll`, for whole trajectories.

    Args:
        layer: an LSTM or a GRU.
        features: [n, F], with gradient.
        rnn_states: [n, S] recorded before each step, L times h (of an LSTM h and c) side by side; only those at the first steps
            of trajectories are looked at.
        keep: [E, T] bool, whether the state after a step flows on to the next; of the last steps nobody asks.

    Returns:
        [n, H], with gradient to features and weights.
    """
    trajectories, steps = keep.shape
    first = rnn_states[::steps].chunk(layer.num_layers, dim=1)
    # the state behind the last step goes nowhere
    masks = keep.t().unsqueeze(2).unbind(0)[:-1]
    x = features.view(trajectories, steps, -1).transpose(0, 1)
    cell = _gru if isinstance(layer, nn.GRU) else _lstm
    for number in range(layer.num_layers):
        w_in, w_state, b_in, b_state = (
            getattr(layer, f"{name}_l{number}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        x = cell(x, first[number], masks, w_in, w_state, b_in, b_state)
    return x.transpose(0, 1).reshape(trajectories * steps, -1)


def _kept(state: Tensor, mask: Tensor) -> Tensor:
    """By selection and not by a product: a state that is no number ends with its episode."""
    return torch.where(mask, state, 0.0)


def _lstm(
    x: Tensor, first: Tensor, masks: tuple[Tensor, ...], w_in: Tensor, w_state: Tensor, b_in: Tensor, b_state: Tensor
) -> Tensor:
    """[T, E, H] of one layer; the input's product is one for all steps."""
    inputs = torch.nn.functional.linear(x, w_in, b_in + b_state).unbind(0)
    h, c = first.chunk(2, dim=1)
    w_state, outputs = w_state.t(), []
    for t, gates in enumerate(inputs):
        if t > 0:
            h, c = _kept(h, masks[t - 1]), _kept(c, masks[t - 1])
        i, f, g, o = torch.addmm(gates, h, w_state).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def _gru(
    x: Tensor, first: Tensor, masks: tuple[Tensor, ...], w_in: Tensor, w_state: Tensor, b_in: Tensor, b_state: Tensor
) -> Tensor:
    """As `_lstm`; the candidate's part of the state's product is weighed by itself before it is added."""
    inputs = torch.nn.functional.linear(x, w_in, b_in).unbind(0)
    h, w_state, outputs = first, w_state.t(), []
    for t, gates in enumerate(inputs):
        if t > 0:
            h = _kept(h, masks[t - 1])
        r_x, z_x, n_x = gates.chunk(3, dim=1)
        r_h, z_h, n_h = torch.addmm(b_state, h, w_state).chunk(3, dim=1)
        n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        h = torch.lerp(n, h, (z_x + z_h).sigmoid())
        outputs.append(h)
    return torch.stack(outputs)
