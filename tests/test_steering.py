"""steering: what the dial's contract, which runs on one device, does not see."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trimtab.interventions import Diagonal
from trimtab.steering import Steering, attach


class Halves(nn.Module):
    """Two layers on two devices: "meta" holds no data, but what is moved to it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.here, self.there = nn.Linear(4, 4), nn.Linear(4, 4, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.there(self.here(x).to("meta"))


class Moves(TorchDispatchMode):
    """Shapes of the tensors that are moved to "meta" within it."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "copy" in func.name() and torch.device("meta") in ((kwargs or {}).get("device"), args[0].device):
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_a_strength_is_moved_to_each_device_when_it_turns_and_not_while_the_model_runs():
    """A pass moves the activation and nothing else; turning moves the strength, once."""
    model, x = Halves(), torch.randn(3, 5, 4)
    steering = Steering({site: (Diagonal(None, torch.ones(4)),) for site in ("module:here", "module:there")})
    with torch.no_grad(), attach(model, steering, [0.0, 0.5, 1.0]) as dial:
        model(x)
        with Moves() as moves:
            model(x)
            model(x)
        assert moves.shapes == [(3, 5, 4)] * 2
        with Moves() as moves:
            dial.strength = [1.0, 0.5, 0.0]
        assert moves.shapes == [(3,)]
