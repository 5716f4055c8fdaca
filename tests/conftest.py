"""What the tests share: quiet hosts, written adapters, and each host beside its variant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import transformers
from diffusers import DiffusionPipeline
from hosts import FAMILIES, HOSTS, OTHER_HOSTS, Host, make, pixels, write_adapter

import instantstyle
from instantstyle import files
from instantstyle.commands import cli
from instantstyle.inference.request import Machine, Request
from instantstyle.inference.session import Session


pytest.register_assert_rewrite("batches", "refusals")  # so that what fails in them is shown

TOLERANCE = 1e-5  # of float32 pixels, where the same numbers are added in another order


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference of two pictures."""
    assert first.shape == second.shape
    return float(np.abs(first - second).max())


def same(first: np.ndarray, second: np.ndarray, tolerance: float = 0.0) -> bool:
    """Whether two pictures are equal within a tolerance."""
    return distance(first, second) <= tolerance


def differ(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two pictures are so far apart that no tolerance could hide it."""
    return distance(first, second) >= 100 * TOLERANCE


def variant_class(host: Host) -> type[DiffusionPipeline]:
    """Return the package's own variant of the twelve, and the one made on demand of the others."""
    if host.name not in HOSTS:
        return instantstyle.with_instantstyle(host.cls)
    family = "StableDiffusionXL" if host.family == "sdxl" else "StableDiffusion"
    return getattr(instantstyle, f"{family}InstantStyle{host.cls.__name__.removeprefix(family)}")


@dataclass
class Pair:
    """A host and its variant with the same weights, each built when first asked for; `paint` gives pixels of one."""

    host: Host

    @cached_property
    def stock(self) -> DiffusionPipeline:
        """The host itself."""
        return make(self.host)

    @cached_property
    def variant(self) -> DiffusionPipeline:
        """The variant."""
        return make(self.host, variant_class(self.host))

    def paint(self, pipe: DiffusionPipeline, **inputs: Any) -> np.ndarray:
        """Return what `pipe` paints in one step from the host's inputs, of which some may be replaced, and more."""
        given = self.host.inputs()
        one_step = {"num_inference_steps": 2 if "strength" in given else 1}
        return pixels(pipe, **{**given, **one_step, **inputs})


def every_host(function: Callable[..., None]) -> Callable[..., None]:
    """Run a test for the twelve and the others."""
    hosts = [*HOSTS.values(), *OTHER_HOSTS.values()]
    return pytest.mark.parametrize("host", hosts, ids=lambda host: host.name)(function)


def most_hosts(function: Callable[..., None]) -> Callable[..., None]:
    """Run a test for the twelve, and for those of the others whose rows or UNets are of another kind."""
    others = ("stable_diffusion_xl_pag", "stable_diffusion_pag", "kolors", "animatediff")
    hosts = [*HOSTS.values(), *(OTHER_HOSTS[name] for name in others)]
    return pytest.mark.parametrize("host", hosts, ids=lambda host: host.name)(function)


def each_family(function: Callable[..., None]) -> Callable[..., None]:
    """Run a test for the text-to-image host of both families."""
    hosts = [HOSTS["stable_diffusion_xl"], HOSTS["stable_diffusion"]]
    return pytest.mark.parametrize("host", hosts, ids=lambda host: host.family)(function)


class WindowsLike:
    """`os` for the module that writes files: no file takes the place of one that this process has open or mapped."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, source: Any, target: Any) -> None:
        """Replace a file that nobody holds."""
        maps = Path("/proc/self/maps")
        held = {os.path.realpath(link) for link in Path("/proc/self/fd").glob("*")}
        held |= {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
        assert not {os.path.realpath(source), os.path.realpath(target)} & held, f"{target} is open"
        os.replace(source, target)


@pytest.fixture(scope="session", autouse=True)
def windows_like() -> Iterator[None]:
    """Let files be written as if on Windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", WindowsLike())
        yield


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """Show no progress bars."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, str]]:
    """Write one adapter per family; they are what `load_ip_adapter` is called with."""
    return {family: write_adapter(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture
def bare(host: Host) -> Pair:
    """Give a host and its variant without adapters to one test, to do with as it likes."""
    return Pair(host)


@pytest.fixture(scope="session")
def loaded_pairs() -> dict[str, Pair]:
    """Keep pairs with adapters for the tests to come."""
    return {}


@pytest.fixture
def pair(
    host: Host,
    adapters: dict[str, tuple[str, str, str]],
    loaded_pairs: dict[str, Pair],
    request: pytest.FixtureRequest,
) -> Iterator[Pair]:
    """Lend a host and its variant with an adapter on all blocks; a test may change their scales and targets."""
    found = loaded_pairs.pop(host.name, None)
    if found is None:
        found = request.getfixturevalue("bare")
        found.stock.load_ip_adapter(*adapters[host.family])
        found.variant.load_ip_adapter(*adapters[host.family], target_blocks="all")
    yield found
    found.stock.set_ip_adapter_scale(1.0)
    found.variant.set_target_blocks("all")
    loaded_pairs[host.name] = found


@pytest.fixture(scope="module")
def session():
    """Open the embedded checkpoint on a CPU."""
    return Session(Machine(device="cpu"))


@pytest.fixture(scope="module")
def pipe(session):
    """Load the embedded checkpoint with its adapter on all blocks."""
    session.load([Request(prompt="", style="of any")])
    session.aim_at((("all", 1.0),))
    return session.pipe


@pytest.fixture
def assert_refused(tmp_path, capsys):
    """Give what asserts that a command ends with a message alone, and leaves `tmp_path` as it was."""

    def check(words: list[str], message: str, places: dict[str, str]) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert cli.main([word.format(**places) for word in words]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("instantstyle: error: ")
        assert message.format(**places) in captured.err
        assert (captured.out, sorted(tmp_path.rglob("*"))) == ("", before)

    return check
