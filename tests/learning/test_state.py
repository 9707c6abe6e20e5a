"""The flat state of a policy: the same tensors in one piece of memory, whatever shares what, and the line between two of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_factory.algo.utils.running_mean_std import RunningMeanStdInPlace
from torch import nn

from sf_fixpo.learning.state import FlatState


class Everything(nn.Module):
    """What a user's network may hold."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 5), nn.Linear(3, 5)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm1d(5)
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.memory = nn.LSTM(3, 4)
        self.statistics = torch.jit.script(RunningMeanStdInPlace((2,)))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("order", torch.arange(7))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("row", torch.randn(4, 6)[1])
        self.register_buffer("short", torch.randn(3).half())


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_module_holds_the_same_tensors_afterwards():
    model = Everything()
    before, strides = tensors(model), {n: t.stride() for n, t in model.state_dict().items()}
    parameters = list(model.parameters())
    state = FlatState(model)
    assert same(before, tensors(model))
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == strides
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True)), "an optimizer made before stays valid"
    assert model.one.weight is model.other.weight
    storages = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    assert len(storages) == len(state.buffers) == len({t.dtype for t in model.state_dict().values()})


def test_no_two_tensors_overlap_but_those_that_did():
    model = Everything()
    FlatState(model)
    for number, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.fill_(number)
    for number, parameter in enumerate(model.parameters()):
        assert (parameter == number).all()


def test_it_goes_on_learning_and_counting():
    model = Everything()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    state, other = FlatState(model), FlatState(Everything())
    other.copy_(state)
    model.statistics(torch.randn(9, 2))
    (model.norm(model.other(torch.randn(4, 3))).sum() + model.conv(torch.randn(1, 3, 5, 5)).square().sum()).backward()
    optimizer.step()
    assert not state.equals(other)
    other.copy_(state)
    assert state.equals(other)


def test_a_shared_state_lies_in_shared_memory():
    model = Everything()
    FlatState(model, shared=True)
    assert all(tensor.is_shared() for tensor in model.state_dict().values() if tensor.numel())


@given(st.floats(0, 1))
def test_the_line_is_the_line_and_ends_exactly_at_its_start(alpha):
    start, end, target = (FlatState(Everything()) for _ in range(3))
    end._tensors["order"].add_(1)
    target.set_line_(start, end, alpha, at_end=["conv.bias"])
    for name, tensor in target._tensors.items():
        a, b = start._tensors[name], end._tensors[name]
        if name == "conv.bias":
            assert torch.equal(tensor, b)
        elif not tensor.is_floating_point() or alpha == 0.0:
            assert torch.equal(tensor, a)
        else:
            torch.testing.assert_close(
                tensor, a + alpha * (b - a), atol=1e-3 if tensor.dtype == torch.float16 else 1e-6, rtol=1e-3
            )


def test_the_state_of_another_network_is_refused_by_name():
    model = Everything()
    model.conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match=r"differ: conv\.bias, conv\.weight"):
        FlatState(Everything()).copy_(FlatState(model))
    plain = Everything()
    plain.conv.to(memory_format=torch.contiguous_format)
    with pytest.raises(ValueError, match=r"conv\.weight"):
        FlatState(Everything()).set_line_(FlatState(Everything()), FlatState(plain), 0.5)


def test_copies_for_files_are_plain_and_apart():
    model = Everything()
    state = FlatState(model)
    copies = state.clone_tensors()
    assert same(copies, tensors(model))
    assert all(copy.is_contiguous() for copy in copies.values())
    with torch.no_grad():
        model.one.weight.zero_()
    assert copies["one.weight"].any()
