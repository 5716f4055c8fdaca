"""Hosts that cannot have InstantStyle are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FluxPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionSAGPipeline,
)
from refusals import assert_says

from instantstyle.core import with_instantstyle


pytest_plugins = ["refusals"]
pytestmark = pytest.mark.usefixtures("offline")


OTHERS = [
    StableDiffusionSAGPipeline,
    StableDiffusionInstructPix2PixPipeline,
    FluxPipeline,
    StableDiffusionAdapterPipeline,
]


@pytest.mark.parametrize("host", OTHERS, ids=lambda host: host.__name__)
def test_a_host_of_another_kind_is_refused_by_name(host: type) -> None:
    """A host that prepares image embeddings in its own way, or takes none, has no variant."""
    with pytest.raises(ValueError) as caught:
        with_instantstyle(host)
    assert_says(caught.value, (host.__name__, "cannot have InstantStyle", "IP-Adapter"))


def test_a_host_of_the_same_kind_is_taken() -> None:
    """The breaking twin: a host outside of the lists with the standard method."""
    assert issubclass(with_instantstyle(StableDiffusionLDM3DPipeline), StableDiffusionLDM3DPipeline)


@pytest.mark.parametrize("host", [None, 3, "StableDiffusionXLPipeline", torch.nn.Linear], ids=repr)
def test_what_is_no_host_is_refused(host: Any) -> None:
    """A host is a class of diffusers."""
    with pytest.raises((TypeError, ValueError)):
        with_instantstyle(host)
