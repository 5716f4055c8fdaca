"""`python -m training.release`: write the trained checkpoint into the package, in half precision."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from instantstyle import tiny


PARTS = (
    "model_index.json",
    "vae/config.json",
    "sdxl_models/ip-adapter_sdxl.safetensors",
    "controlnet/config.json",
    "judges.safetensors",
)
DEFAULT = tiny.path()


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m training.release", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tiny-training"), help="folder of the training")
    parser.add_argument("--output", type=Path, default=DEFAULT, help="folder to write the checkpoint to")
    options = parser.parse_args(arguments)
    release(options.work / "checkpoint", options.output)
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
    print(f"{options.output}: {size / 1e6:.2f} MB")


def release(checkpoint: Path, output: Path) -> None:
    """Copy a checkpoint with every tensor in half precision; loaded, it is in float32 where nothing else is asked for.

    An adapter's metadata, with its presets, is kept as it is.

    Raises:
        SystemExit: The training is not complete, or `output` holds something else than a checkpoint.
    """
    missing = [name for name in PARTS if not (checkpoint / name).is_file()]
    if missing:
        raise SystemExit(f"--work: {checkpoint} has no {missing[0]}; run `python -m training` first.")
    if output.exists() and any(output.iterdir()) and not (output / "model_index.json").is_file():
        raise SystemExit(f"--output: {output} holds something else than a checkpoint, and is left alone.")
    shutil.rmtree(output, ignore_errors=True)
    for path in sorted(checkpoint.rglob("*")):
        if not path.is_file():
            continue
        target = output / path.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            halve(path, target)
        elif path.suffix == ".json":
            write_json(json.loads(path.read_text(encoding="utf-8")), target)
        else:
            shutil.copyfile(path, target)
        if path.name == "tokenizer.json":
            split_tokenizer(target)


def split_tokenizer(path: Path) -> None:
    """Write a tokenizer's words and merges beside it, from which transformers 4 makes it."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    write_json(model["vocab"], path.with_name("vocab.json"))
    merges = [" ".join(pair) for pair in model["merges"]]
    path.with_name("merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8", newline="\n")


def halve(path: Path, target: Path) -> None:
    """Copy a safetensors file in half precision, under the names that published files have."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {published(path, name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(halved, target, metadata=metadata)
    target.chmod(0o644)  # safetensors makes files that only their owner can read


def published(path: Path, name: str) -> str:
    """Give a tensor's name the prefix that transformers 5 leaves out when it saves a text encoder, and 4 asks for."""
    return name if path.parent.name != "text_encoder" else f"text_model.{name.removeprefix('text_model.')}"


def write_json(value: dict[str, object], target: Path) -> None:
    """Write a configuration without the folder of the training, and with float32 as what transformers loads it to."""
    kept = {key: item for key, item in value.items() if key != "_name_or_path"}
    if "dtype" in kept:
        kept["dtype"] = "float32"
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
