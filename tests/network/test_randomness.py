"""Random numbers come from generators of the package's own, and leave the user's state alone."""

from __future__ import annotations

import pytest
import torch
from networks import images
from settings import STRANGE_DEFAULTS, defaults

from afmi.network.randomness import generator_of, image_generator, keeping_random_state


def test_a_generator_depends_on_the_seed_and_the_pixels_alone() -> None:
    x = images(2)
    states = [image_generator(seed, x[i]).get_state() for seed, i in ((0, 0), (1, 0), (0, 1))]
    assert len({state.numpy().tobytes() for state in states}) == 3
    assert torch.equal(image_generator(0, x[0].clone()).get_state(), states[0])
    assert torch.equal(image_generator(0, x.double()[0]).get_state(), states[0])


@pytest.mark.parametrize("strange", STRANGE_DEFAULTS, ids=str)
def test_generators_stay_on_the_cpu(strange: dict) -> None:
    expected = generator_of(3).get_state()
    with defaults(**strange):
        generator = generator_of(3)
        assert generator.device.type == "cpu"
        assert torch.equal(generator.get_state(), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_the_state_is_restored_on_apples_gpus_too(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ["before"]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: state.__setitem__(0, new))
    on_cpu = torch.get_rng_state()
    try:
        with keeping_random_state(torch.device("mps")):
            torch.rand(3)
            state[0] = "drawn from"
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert state == ["before"]
    assert torch.equal(torch.get_rng_state(), on_cpu)
