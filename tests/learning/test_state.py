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
        self.register_buffer("whole", torch.randn(12))
        self.register_buffer("part", self.whole[2:5])
        self.register_buffer("row", torch.randn(4, 64)[1])
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


def test_every_memory_starts_where_it_would_alone_and_nothing_is_wasted():
    model = Everything()
    lengths = {"one.weight": 15, "row": 64, "whole": 12, "conv.weight": 216}  # of 4 bytes: 64 fill 256
    memory = {}
    for name, tensor in model.state_dict().items():
        memory.setdefault(tensor.untyped_storage().data_ptr() or name, (tensor.dtype, []))[1].append(name)
    state = FlatState(model)
    size = dict.fromkeys((dtype for dtype, _ in memory.values()), 0)
    for dtype, names in memory.values():
        tensors_here = [model.state_dict()[name] for name in names]
        (buffer,) = (buffer for key, buffer in state.buffers.items() if key[0] is dtype)
        start = min(tensor.data_ptr() for tensor in tensors_here) - buffer.data_ptr()
        if tensors_here[0].numel():
            assert start % 256 == 0, names
        longest = max(tensor.numel() for tensor in tensors_here)
        if len(names) > 1 and names[0].startswith("memory"):
            longest = sum(tensor.numel() for tensor in tensors_here)
        assert longest == lengths.get(names[0], longest)
        size[dtype] += -(-longest * dtype.itemsize // 256) * 256
    assert {key[0]: buffer.nbytes for key, buffer in state.buffers.items()} == size


def flattened(layer):
    """A recurrent layer whose weights lie one after the other in one storage, as torch puts them on an accelerator."""
    weights = list(layer.parameters())
    whole, start = torch.cat([weight.detach().flatten() for weight in weights]), 0
    for weight in weights:
        weight.data = whole[start : start + weight.numel()].view(weight.shape)
        start += weight.numel()
    return layer


def test_the_weights_of_a_recurrent_layer_begin_their_storage_where_they_lie_in_one():
    # cuDNN takes them as they are only then; found on a GPU, where every call copied them together first
    def make():
        parts = nn.Linear(3, 5), flattened(nn.LSTM(5, 4)), nn.Linear(4, 2), flattened(nn.GRU(2, 3)), nn.LSTM(3, 3)
        return nn.ModuleList(parts)

    model = make()
    before = tensors(model)
    offsets = {name: weight.storage_offset() for name, weight in model.named_parameters() if name[0] in "13"}
    state, other = FlatState(model), FlatState(make())
    assert same(before, tensors(model))
    assert {name: weight.storage_offset() for name, weight in model.named_parameters() if name[0] in "13"} == offsets
    storages = [{weight.untyped_storage().data_ptr() for weight in part.parameters()} for part in model]
    assert [len(storage) for storage in storages] == [1] * 5
    assert storages[0] == storages[2] == storages[4]
    assert len(set.union(*storages)) == len(state.buffers) == 3
    assert not other.equals(state)
    other.set_line_(other, state, 1.0)
    assert other.equals(state)


def test_what_shares_memory_goes_on_sharing_it():
    model = Everything()
    FlatState(model)
    model.whole.copy_(torch.arange(12.0))
    assert model.part.tolist() == [2.0, 3.0, 4.0]


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
    model = Everything()
    FlatState(model)
    assert not any(tensor.is_shared() for tensor in model.state_dict().values())
    with pytest.raises(TypeError, match="positional"):
        FlatState(model, True)


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


def test_the_start_of_the_line_is_the_start_whatever_the_end_holds():
    start, end, target = (FlatState(Everything()) for _ in range(3))
    end._tensors["one.bias"].data.fill_(float("nan"))
    target.set_line_(start, end, 0.0)
    assert target.equals(start)


def test_the_state_of_another_network_is_refused_by_name():
    model = Everything()
    model.conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match=r"differ: conv\.bias, conv\.weight"):
        FlatState(Everything()).copy_(FlatState(model))
    more = Everything()
    more.register_buffer("another", torch.zeros(2, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"differ: another$"):
        FlatState(Everything()).copy_(FlatState(more))
    for i in range(7):
        more.register_buffer(f"another_{i}", torch.zeros(2, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"differ: another, another_0, another_1, another_2, another_3$"):
        FlatState(Everything()).copy_(FlatState(more))
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
