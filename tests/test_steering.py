"""steering: what the dial's contract, which runs on one device, does not see."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trimtab.interventions import Diagonal
from trimtab.steering import Steering, attach
from trimtab.testing import random_ids, random_steering, tiny


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


@pytest.mark.parametrize("kind", ["diagonal", "shift", "lowrank"])
@pytest.mark.parametrize("strength", [0.5, [0.5, 0.0]], ids=str)
def test_gradients_flow_after_a_pass_in_inference_mode(kind, strength):
    """What a dial keeps from scoring does no harm to a pass with gradients."""
    model = tiny("llama")
    steering, ids = random_steering(model, "*norm*", kind, scale=0.1, seed=1), random_ids(model, 2, 6)

    def gradient(before: bool) -> torch.Tensor:
        with attach(model.hf, steering, strength):
            if before:
                with torch.inference_mode():
                    model.hf(input_ids=ids)
            embeds = model.hf.get_input_embeddings()(ids).detach().requires_grad_()
            model.hf(inputs_embeds=embeds).logits.square().sum().backward()
        assert embeds.grad is not None
        return embeds.grad

    assert torch.equal(gradient(before=True), gradient(before=False))


def test_in_any_dtype_one_steering_is_the_formula():
    """`h + w (a h + c)` within the rounding of the activation's dtype, whether one operation or two make it."""
    gen = torch.Generator().manual_seed(0)
    a, c, h = (torch.randn(n, generator=gen) for n in (16, 16, (3, 5, 16)))
    exact = h.double() + 0.7 * (0.01 * a.double() * h.double() + c.double())
    for dtype, bound in ((torch.float64, 1e-7), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        module = nn.Sequential(nn.Identity())
        with attach(module, Steering({"module:0": (Diagonal(0.01 * a, c),)}), 0.7):
            found = module(h.to(dtype))
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), exact, atol=bound, rtol=bound)
