"""The encoder of DMLab's observations, pixels and the instruction, with everything on the learner's device.

The architecture is IMPALA's (Espeholt et al. 2018, section 5.3.1, figure 3) as sample-factory's DMLab example builds it: words of
a vocabulary of 1000 are embedded, an LSTM reads them, and its output at the last word goes beside the image's features.

Shape symbols: B samples, W words of an instruction (padded with 0 to a fixed length), U distinct instructions among B, H LSTM
units, F image features.
"""

from __future__ import annotations

import torch
from sample_factory.model.model_utils import model_device
from sample_factory.utils.typing import Config, ObsSpace
from sf_examples.dmlab.dmlab30 import DMLAB_INSTRUCTIONS
from sf_examples.dmlab.dmlab_model import DmlabEncoder as ExampleDmlabEncoder
from torch import Tensor, nn


def encode_instructions(words: Tensor, embedding: nn.Embedding, lstm: nn.LSTM) -> Tensor:
    """The LSTM's output at the last word of each instruction; an empty one counts as the single word 0.

    An LSTM reads from left to right, so that what it says at the last word does not depend on the padding behind it: reading
    all W words and looking back is the same as reading a packed sequence, whose lengths the host would have to know.

    Args:
        words: [B, W] int64, on the modules' device.
        embedding: word vectors, with gradient.
        lstm: one layer, batch first, with gradient.

    Returns:
        [B, H]
    """
    # an exporter follows one batch for all: what depends on the numbers in it has no place there
    exported = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if words.device.type == "cpu" and not exported:
        return _encode_distinct(words, embedding, lstm)
    return _encode_all(words, embedding, lstm)


def _encode_all(words: Tensor, embedding: nn.Embedding, lstm: nn.LSTM) -> Tensor:
    """Every row over every column; the host waits for nothing."""
    lengths = (words != 0).sum(dim=1).clamp(min=1)
    outputs, _ = lstm(embedding(words))
    last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, outputs.shape[2])
    return outputs.gather(1, last).squeeze(1)


def _encode_distinct(words: Tensor, embedding: nn.Embedding, lstm: nn.LSTM) -> Tensor:
    """Each distinct instruction once, up to the last word of any: a batch holds few, and on the CPU reading numbers is free."""
    columns = torch.arange(1, words.shape[1] + 1)
    words = words[:, : max(1, int(((words != 0) * columns).max()))]
    if (words == words[:1]).all():  # a level with one instruction, or none: no need to sort
        return _encode_all(words[:1], embedding, lstm).expand(len(words), -1)
    distinct, row_of = torch.unique(words, dim=0, return_inverse=True)
    return _encode_all(distinct, embedding, lstm).index_select(0, row_of)


class DmlabEncoder(ExampleDmlabEncoder):
    """sample-factory's encoder for DMLab, without its detour over the CPU.

    Same parameters by name, shape, order and initial values, and same outputs: checkpoints of either load in the other. There
    the embedding and the LSTM stay on the CPU, and every forward pass waits for the instructions' lengths and copies the result.
    """

    def model_to_device(self, device) -> None:
        """Moves everything, the instruction's part included."""
        self.to(device)

    def device_for_input_tensor(self, input_tensor_name: str) -> torch.device:
        """The module's own device for every observation."""
        return model_device(self)

    def forward(self, obs_dict: dict[str, Tensor]) -> Tensor:
        """Features of the observations `obs` and `INSTR`; other keys are not looked at.

        Args:
            obs_dict: `obs` [B, C, H, W] float as normalised, `INSTR` [B, W] int64, both on the module's device.

        Returns:
            [B, F + H]
        """
        image = self.basic_encoder(obs_dict["obs"])
        instruction = encode_instructions(obs_dict[DMLAB_INSTRUCTIONS], self.word_embedding, self.instructions_lstm)
        return torch.cat((image, instruction), dim=1)


def make_dmlab_encoder(cfg: Config, obs_space: ObsSpace) -> DmlabEncoder:
    """The encoder in the form that sample-factory's model factory takes."""
    return DmlabEncoder(cfg, obs_space)
