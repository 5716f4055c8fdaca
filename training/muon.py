"""Muon (https://kellerjordan.github.io/posts/muon) for weights of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Muon(torch.optim.Muon):
    """PyTorch's Muon, which takes matrices only, on views of the weights: the first dimension by all others."""

    def __init__(self, weights: Sequence[nn.Parameter], rate: float, weight_decay: float) -> None:
        self.weights = weights
        matrices = [nn.Parameter(weight.detach().flatten(1)) for weight in weights]
        super().__init__(matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        """Take one step along the weights' gradients."""
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        return super().step(closure)
