"""The processes that Accelerate started, of which there may be one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from instantstyle.inference.request import Machine
from instantstyle.inference.session import find_device


PATIENCE = timedelta(days=30)  # for which processes that are done wait for the others


def join(device: str | None) -> Any:
    """Join the other processes that Accelerate started, if it did.

    Args:
        device: The device that was asked for.

    Raises:
        ValueError: There is no such device.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or find_device(device).type == "cpu"
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


def place(machine: Machine, processes: Any) -> Machine:
    """Take the device that Accelerate gives this process.

    Raises:
        ValueError: Several processes are to have the same device, or all of them.
    """
    several = processes.num_processes > 1
    if several and machine.device_map is not None:
        raise ValueError(
            f"`device_map` {machine.device_map} spreads one model over all devices, so it wants one process, not "
            f"{processes.num_processes}."
        )
    if several and ":" in (machine.device or ""):
        raise ValueError(f"`device`: {machine.device} is one device, but each process has its own; leave it out.")
    if machine.device_map is None and (several or machine.device is None):
        return machine.but(device=str(processes.device))
    return machine


def bar_name(processes: Any) -> str:
    """Say what the progress bar is about: parts are of equal size, so the first one speaks for all."""
    return "pictures" if processes.num_processes == 1 else f"pictures of the first of {processes.num_processes}"


def share(processes: Any, items: list[Any]) -> list[Any]:
    """Return this process's part of a list that all processes have."""
    hands = processes.num_processes
    # Dealt out like cards, as neighbours are alike slow.
    with processes.split_between_processes([item for first in range(hands) for item in items[first::hands]]) as part:
        return list(part)


def gather(processes: Any, items: list[Any]) -> list[Any]:
    """Join the lists of all processes, in the order of the processes. Waits for all."""
    from accelerate.utils import gather_object

    return gather_object(items) if processes.num_processes > 1 else items


def together(processes: Any, work: Callable[[], Any]) -> Any:
    """Do something on every process. Where it fails on one, all end, and the main one says why.

    Raises:
        ValueError, OSError: On the main process, what went wrong here or elsewhere.
        SystemExit: On the others, which have nothing to add.
    """
    result = None
    error: Exception | None = None
    try:
        result = work()
    except (ValueError, OSError) as raised:
        error = raised
    errors = gather(processes, [str(error)] if error else [])
    if errors and not processes.is_main_process:
        sys.exit(0)
    if errors:
        raise error or ValueError(errors[0])
    return result
