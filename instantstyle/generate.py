"""`instantstyle generate`: from the words of the command line to pictures with their recipes."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from instantstyle import fast, hires, models, recipe, upscale
from instantstyle.console import calm
from instantstyle.files import check_output
from instantstyle.reading import PIXELS
from instantstyle.version import in_dtype, versions


# Each of these says nothing without the other.
NEEDS = {
    "mask": "image",
    "strength": "image",
    "control_image": "controlnet",
    "controlnet": "control_image",
    "controlnet_scale": "controlnet",
    "fast_weights": "fast",
    "upscale_strength": "upscale",
}
ENCODED = ("content", "target_blocks", "adapter", "content_encoder")  # what a style file has behind it
PICTURES = ("style", "image", "mask", "control_image")


@dataclass(frozen=True)
class Picture:
    """A picture that was given, with what the recipe keeps of it."""

    image: Image.Image
    file: str
    sha256: str

    @property
    def written(self) -> dict[str, str]:
        """What the recipe keeps."""
        return {"file": self.file, "sha256": self.sha256}


def run(options: argparse.Namespace) -> None:
    """Make the pictures that the command line asks for; their paths go to standard output.

    Raises:
        ValueError, OSError: A user's mistake.
    """
    check(options)
    pictures = {name: open_picture(option(name), path) for name, path in picture_paths(options).items()}
    given = fit(pictures, options.size)
    paths = output_paths(options.output, len(options.prompt) * options.num_images)
    bars = sys.stderr.isatty() and not options.quiet
    if options.seed is None:
        options.seed = secrets.randbits(32)

    with calm(bars):
        style, kept = load_style(options.style) if is_style_file(options) else (None, None)
        model = models.find_model(options.model)
        check_family(options, style, model)
        check_hires(options, model)
        check_strength(options, model)
        adapter = None
        if style is None:
            adapter = models.find_adapter(options.adapter, model)
            check_content_encoder(options, model, adapter)
        pipe = load(options, model, adapter)
        pipe.set_progress_bar_config(disable=not bars)
        warn_of_unknown_words(model, [*options.prompt, options.negative or "", options.content or ""])
        if options.hires:
            hires.enable_hidiffusion(pipe)
        arguments = call_arguments(options, pipe, given, style)
        images = pipe(**arguments).images
        if options.upscale is not None:
            images = upscale.repaint(options, pipe, model.family, given, style, images)

    common = describe(options, pictures, pipe, model, adapter, kept, arguments)
    for index, (image, path) in enumerate(zip(images, paths, strict=True)):
        keep(image, path, options, common, index)
        print(path)


def check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is read."""
    for name, other in NEEDS.items():
        if getattr(options, name) is not None and getattr(options, other) is None:
            raise ValueError(f"{option(name)} needs {option(other)}.")
    for name in ENCODED if is_style_file(options) else ():
        if getattr(options, name) is not None:
            raise ValueError(
                f"{option(name)} is for a reference picture, but --style {options.style} is encoded already; "
                f"give {option(name)} to `instantstyle encode`."
            )
    fast.check(options)
    hires.check(options)
    upscale.check(options)


def is_style_file(options: argparse.Namespace) -> bool:
    """Whether --style is an encoded style rather than a picture, by its name."""
    return Path(options.style).suffix == ".safetensors"


def picture_paths(options: argparse.Namespace) -> dict[str, str]:
    """Name the picture files that the options give; a style file is none."""
    names = [name for name in PICTURES if name != "style" or not is_style_file(options)]
    return {name: getattr(options, name) for name in names if getattr(options, name)}


def load_style(path: str, name: str = "--style") -> tuple[Any, dict[str, Any]]:
    """Read a style file: the style, and what the recipe keeps of it. Errors say the name of what gave it."""
    from instantstyle.style import Style

    if not Path(path).is_file():
        raise OSError(f"{name}: {path}: there is no such file.")
    try:
        style = Style.load(path)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return style, {**describe_file(name, path), "recipe": asdict(style.recipe)}


def check_family(options: argparse.Namespace, style: Any, model: models.Model, name: str = "--style") -> None:
    """Refuse a style that was encoded for another family, before the model is loaded."""
    if style is not None and style.recipe.family != model.family:
        raise ValueError(
            f"{name}: {options.style} is of the family {style.recipe.family}, but --model {model.label} is of the "
            f"family {model.family}; encode the reference with a model of that family."
        )


def option(name: str) -> str:
    """Write an option as it is typed."""
    return "--" + name.replace("_", "-")


def check_hires(options: argparse.Namespace, model: models.Model) -> None:
    """Refuse --hires for a UNet that HiDiffusion does not know, and without its library, before anything is loaded."""
    if options.hires:
        with about("--hires", model.label):
            hires.table(model.unet)
            hires.load_library()


def check_strength(options: argparse.Namespace, model: models.Model) -> None:
    """Refuse image to image without a step; how much of a picture is changed by default is up to the pipeline."""
    if options.image:
        fast.check_part("--strength", strengths(options, variant_class(options, model)).get("strength"), options)


def warn_of_unknown_words(model: models.Model, texts: Sequence[str]) -> None:
    """Print `unknown_words`, if there are any."""
    if remark := unknown_words(model, texts):
        print(f"instantstyle: {remark}", file=sys.stderr)


def unknown_words(model: models.Model, texts: Sequence[str]) -> str | None:
    """Say which words a model of the drawn world has never seen, and which it knows; of other models say nothing."""
    if not models.knows_world(model):
        return None
    from instantstyle.tiny import world

    unknown = world.unknown_words(" ".join(texts))
    if not unknown:
        return None
    return (
        f"--model {model.label} does not know {', '.join(map(repr, unknown))}; "
        f"it knows: {' '.join(filter(str.isalpha, world.words()))}. Choose a real model with --model."
    )


def open_picture(name: str, path: str) -> Picture:
    """Read a picture whole, so that a broken file is found now.

    Args:
        name: The option that gave it, for errors.
        path: The file.

    Raises:
        ValueError: It is not a picture, or is damaged.
        OSError: It cannot be read.
    """
    described = describe_file(name, path)
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {path} is not a picture that can be read ({type(error).__name__}).") from error
    return Picture(image, **described)


def describe_file(name: str, path: str) -> dict[str, str]:
    """Say what the recipe keeps of a file: its name and its fingerprint.

    Args:
        name: The option that gave it, for errors.
        path: The file.

    Raises:
        OSError: It cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OSError(f"{name}: {path}: {error.strerror}.") from error
    return {"file": Path(path).name, "sha256": hashlib.sha256(content).hexdigest()}


def fit(pictures: dict[str, Picture], size: tuple[int, int] | None) -> dict[str, Image.Image]:
    """Turn and convert the pictures as the host does, and bring those to start from to the size of the result.

    The reference stays as it is: the pipeline turns it and knows its mode.
    """
    from diffusers.utils import load_image

    images = {
        name: picture.image if name == "style" else load_image(picture.image) for name, picture in pictures.items()
    }
    if "image" in images:
        if "mask" in images and images["mask"].size != images["image"].size:
            raise ValueError(
                "--mask is {}x{} pixels, but --image is {}x{}; give both the same size.".format(
                    *images["mask"].size, *images["image"].size
                )
            )
        width, height = size or (side // PIXELS * PIXELS for side in images["image"].size)
        if not width or not height:
            raise ValueError(f"--image is smaller than {PIXELS} pixels; give a larger --size.")
        for name in images.keys() - {"style"}:
            images[name] = images[name].resize((width, height), Image.Resampling.LANCZOS)
    return images


def output_paths(output: str, number: int) -> list[Path]:
    """Name the files to write: FILE.png, or FILE-0.png, FILE-1.png, ... for several pictures.

    Raises:
        ValueError: The name does not end in .png, or its folder is missing or cannot be written.
    """
    path = check_output("--output", output, ".png", "the recipe")
    return [path] if number == 1 else [path.with_stem(f"{path.stem}-{index}") for index in range(number)]


def check_content_encoder(
    options: argparse.Namespace, model: models.Model, adapter: models.Adapter, name: str = "--content"
) -> None:
    """Refuse to remove content where the model has no text tower that matches the adapter."""
    if options.content is None or options.content_encoder is not None:
        return
    if model.family == "sd15" or adapter.uses_vit_h:
        raise ValueError(
            f"{name} with {adapter.label} needs --content-encoder, the text tower of its image encoder; "
            f"for the published ViT-H adapters: --content-encoder {models.CONTENT_ENCODER}"
        )


def load(options: argparse.Namespace, model: models.Model, adapter: models.Adapter | None) -> Any:
    """Load the pipeline that the options ask for, with its adapter if there is one, on its device."""
    import torch

    device = find_device(options.device)
    check_offload(options.offload, device)
    check_device_map(options, model)
    weights = find_fast_weights(options, model.family)
    dtype = getattr(torch, options.dtype or ("float16" if device.type == "cuda" else "float32"))
    variant = variant_class(options, model)
    parts = {"controlnet": load_controlnet(options.controlnet, dtype)} if options.controlnet else {}
    if options.device_map is not None:
        parts["device_map"] = options.device_map
    from_source = variant.from_single_file if model.single_file else variant.from_pretrained
    with about("--model", model.label):
        pipe = from_source(model.source, **in_dtype(dtype), **parts)
    if options.fast is not None:
        with about("--fast", options.fast):
            fast.apply(pipe, fast.RECIPES[options.fast], weights)
    if options.vae_tiling:
        pipe.vae.enable_tiling()
    if adapter is not None:
        pipe.load_ip_adapter(
            adapter.source,
            subfolder=adapter.subfolder,
            weight_name=adapter.weight_name,
            image_encoder_folder=adapter.image_encoder_folder,
            target_blocks=target_blocks(options),
        )
        pipe.set_target_blocks(target_blocks(options), scale=options.scale)
    if options.content_encoder is not None:
        with about("--content-encoder", options.content_encoder):
            pipe.load_content_encoder(options.content_encoder)
    if options.device_map is not None:
        return pipe
    return place(pipe, options)


def place(pipe: Any, options: argparse.Namespace) -> Any:
    """Bring a pipeline to the device that the options ask for, or have it brought there part by part."""
    device = find_device(options.device)
    if options.offload == "none":
        return pipe.to(device)
    getattr(pipe, f"enable_{options.offload}_cpu_offload")(device=device)
    return pipe


def find_fast_weights(options: argparse.Namespace, family: str) -> Path | None:
    """Find what --fast puts on the UNet."""
    if options.fast is None:
        return None
    with about("--fast", options.fast):
        return fast.find_weights(fast.RECIPES[options.fast], family, options.fast_weights)


@contextmanager
def about(name: str, value: str) -> Iterator[None]:
    """Put an option and its value before an error that speaks of neither."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        # ImportError: a folder that holds nothing makes transformers ask for packages that other formats need.
        raise ValueError(f"{name}: {value}: {error}") from error


def find_device(name: str | None) -> Any:
    """Return the device of this name, or the best one there is.

    Raises:
        ValueError: There is no such device here.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device: {name!r} cannot be used here ({str(error).splitlines()[0]}).") from error
    return device


def check_offload(offload: str, device: Any) -> None:
    """Refuse offloading where there is nothing to offload from."""
    if offload != "none" and device.type == "cpu":
        raise ValueError(f"--offload {offload} needs an accelerator, but --device is cpu.")


def check_device_map(options: argparse.Namespace, model: models.Model) -> None:
    """Refuse to spread over devices what is placed in another way, or cannot be spread."""
    if options.device_map is None:
        return
    if options.offload != "none" or options.device is not None:
        other = "--device" if options.device is not None else "--offload"
        raise ValueError(f"--device-map {options.device_map} places the model itself; leave {other} out.")
    if options.controlnet is not None or model.single_file:
        what = "--controlnet" if options.controlnet is not None else "--model, which is a single file"
        raise ValueError(f"--device-map: diffusers cannot spread {what}; leave --device-map out, or see --offload.")


def variant_name(options: argparse.Namespace, family: str) -> str:
    """Name the pipeline for the pictures that were given."""
    kind = "Inpaint" if options.mask else "Img2Img" if options.image else ""
    control = "ControlNet" if options.controlnet else ""
    return f"StableDiffusion{'XL' if family == 'sdxl' else ''}InstantStyle{control}{kind}Pipeline"


def variant_class(options: argparse.Namespace, model: models.Model) -> Any:
    """Return the pipeline's class for the pictures that were given."""
    import instantstyle

    return getattr(instantstyle, variant_name(options, model.family))


def load_controlnet(text: str, dtype: Any) -> Any:
    """Load the ControlNet from a folder, the Hub, or the embedded checkpoint."""
    from diffusers import ControlNetModel

    source = text
    if text == models.TINY:
        from instantstyle import tiny

        source = str(tiny.path() / "controlnet")
    with about("--controlnet", text):
        return ControlNetModel.from_pretrained(source, **in_dtype(dtype))


def target_blocks(options: argparse.Namespace) -> dict[str, float]:
    """Collect --target-blocks; "style" is what the pipeline itself targets by default."""
    return dict(options.target_blocks or [("style", 1.0)])


def call_arguments(
    options: argparse.Namespace, pipe: Any, given: dict[str, Image.Image], style: Any
) -> dict[str, Any]:
    """Put the options in the words of the pipeline's call."""
    import torch

    total = len(options.prompt) * options.num_images
    steps, guidance = fast.sampling(options)
    arguments: dict[str, Any] = {
        "prompt": options.prompt,
        "negative_prompt": None if options.negative is None else [options.negative] * len(options.prompt),
        "num_images_per_prompt": options.num_images,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        **fast.extra_arguments(options),
        # On the CPU, so that a seed means the same noise on every device.
        "generator": [torch.Generator("cpu").manual_seed(options.seed + index) for index in range(total)],
        **({"ip_adapter_image": given["style"]} if style is None else {"style": style, "style_scale": options.scale}),
        **picture_arguments(options, given),
    }
    known = inspect.signature(pipe.__call__).parameters
    size = given["image"].size if "image" in given else options.size
    if size is not None and "height" in known:
        arguments["width"], arguments["height"] = size
    if options.content is not None:
        arguments |= {"neg_content_prompt": options.content, "neg_content_scale": options.content_scale}
    return arguments | strengths(options, type(pipe))


def strengths(options: argparse.Namespace, variant: Any) -> dict[str, float]:
    """Put the strengths that a pipeline class has in the words of its call.

    The recipe shall say what was used, so where the options leave it, the class's own default is written down too.
    """
    known = inspect.signature(variant.__call__).parameters
    values = {"strength": options.strength, "controlnet_conditioning_scale": options.controlnet_scale}
    return {name: known[name].default if value is None else value for name, value in values.items() if name in known}


def picture_arguments(options: argparse.Namespace, given: dict[str, Image.Image]) -> dict[str, Image.Image]:
    """Name the pictures as the pipeline does: a ControlNet's picture that is the only one is `image`."""
    if options.image is None:
        return {"image": given["control_image"]} if options.controlnet else {}
    names = {"image": "image", "mask": "mask_image", "control_image": "control_image"}
    return {names[name]: image for name, image in given.items() if name in names}


def describe(
    options: argparse.Namespace,
    pictures: dict[str, Picture],
    pipe: Any,
    model: models.Model,
    adapter: models.Adapter | None,
    style: dict[str, Any] | None,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """Write the recipe that all pictures of this run share: names and fingerprints, but no local path."""
    files = {name: picture.written for name, picture in pictures.items()}
    return {
        "versions": versions(),
        **asked(options, model, adapter, files if style is None else {**files, "style": style}, arguments),
        "device": pipe._execution_device.type,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "offload": options.offload,
    }


def asked(
    options: argparse.Namespace,
    model: models.Model,
    adapter: models.Adapter | None,
    files: Mapping[str, Mapping[str, Any]],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the part of the recipe that can be known before anything is loaded.

    Args:
        options: What the user asked for.
        model: The model.
        adapter: The adapter; None with a style file.
        files: What is kept of each file that was given, by option.
        arguments: At least what `strengths` gives.
    """
    labels = {
        name: models.label_of(value) if (value := getattr(options, name)) else None
        for name in ("controlnet", "content_encoder")
    }
    steps, guidance = fast.sampling(options)
    return {
        "pipeline": variant_name(options, model.family),
        "model": model.label,
        "adapter": adapter.label if adapter else None,
        **labels,
        "prompts": options.prompt,
        "negative": options.negative,
        **files,
        "content": options.content,
        "content_scale": options.content_scale if options.content is not None else None,
        "target_blocks": target_blocks(options) if adapter else None,
        "scale": options.scale,
        "seed": options.seed,
        "fast": fast.describe(options, model.family),
        "steps": steps,
        "guidance": guidance,
        "num_images": options.num_images,
        "asked_size": options.size,
        "strength": arguments.get("strength"),
        "controlnet_scale": arguments.get("controlnet_conditioning_scale"),
        "hires": options.hires,
        "upscale": options.upscale,
        "upscale_strength": upscale.strength(options),
        "vae_tiling": options.vae_tiling,
    }


def keep(
    image: Image.Image, path: Path, options: argparse.Namespace, common: Mapping[str, Any], index: int = 0
) -> None:
    """Save the picture of this index with its recipe."""
    own = {"index": index, "prompt": options.prompt[index // options.num_images], "seed": options.seed + index}
    recipe.write(image, path, {**common, "size": list(image.size), "picture": own})
