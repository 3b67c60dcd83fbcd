"""LoRAs and ControlNets: told whether they fit from headers and configs, before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iopaint_core import TensorFiles, WeightsError, hub_file
from iopaint_plugins.diffusion.configs import read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray
    from torch import Tensor

    from iopaint_core import LoadContext
    from iopaint_plugins.diffusion.parameters import Adapters

_FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""By the width of what the UNet attends to."""
_LCM = {768: "latent-consistency/lcm-lora-sdv1-5", 2048: "latent-consistency/lcm-lora-sdxl"}
_LORA_FILE = "pytorch_lora_weights.safetensors"
_ATTENDS = re.compile(r"attn2[._]to_k.*\.(lora_down|lora_A|lora\.down|down)\b")
"""The tensor of a LoRA that is as wide as what the UNet attends to."""
_REPOSITORY = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*(?<!\.safetensors))(/(?P<filename>.+\.safetensors))?")


def lora_files(adapters: Adapters, context: LoadContext, unet: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files of the LoRAs, in order, that of latent-consistency last; checked against the UNet's config.

    Raises `WeightsError`.
    """
    width = unet.get("cross_attention_dim")
    files = [_lora_file(name, context) for name in adapters.loras]
    for file in files:
        _check_lora(file, width)
    if adapters.lcm_lora:
        if width not in _LCM:
            raise WeightsError(
                "There is no LoRA of latent-consistency for this model",
                "Take one of Stable Diffusion 1 or XL, or leave out sd_lcm_lora",
            )
        files.append(hub_file(_LCM[width], _LORA_FILE, context))
    return tuple(files)


def lora_names(adapters: Adapters) -> list[str]:
    """What the LoRAs are called in a pipeline, in the order of `lora_files`."""
    return [f"lora_{number}" for number in range(len(adapters.loras) + adapters.lcm_lora)]


def add_loras(pipeline: Any, files: tuple[Path, ...], adapters: Adapters) -> None:  # noqa: ANN401 - diffusers is not typed
    """Put LoRAs beside the weights of a pipeline, which stay as they are. Raises `WeightsError`."""
    if not files:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise WeightsError(f"{type(pipeline).__name__} takes no LoRAs", "Leave them out, or take another model")
    for name, file in zip(lora_names(adapters), files, strict=True):
        try:
            with _without_chance():
                pipeline.load_lora_weights(TensorFiles((file,)).open(), adapter_name=name, low_cpu_mem_usage=False)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise _misfit(file, " ".join(str(error).split())[:300]) from error
        if not any(name in names for names in pipeline.get_list_adapters().values()):
            raise _misfit(file, "it has no weights for any layer of the model")


def _without_chance() -> AbstractContextManager[object]:
    """In this thread, have torch fill with zeros what it would fill with random numbers, which nobody is to see.

    PEFT fills the weights of a LoRA before it reads them, unless `low_cpu_mem_usage` is asked for: that replaces
    `nn.Module.register_parameter` for all threads, and then models that others load meanwhile lose theirs.
    """
    from torch.overrides import TorchFunctionMode

    class WithoutChance(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: object,
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> object:
            if func.__name__ in {"kaiming_uniform_", "uniform_", "normal_"}:
                return (args[0] if args else (kwargs or {})["tensor"]).data.zero_()
            return func(*args, **(kwargs or {}))

    return WithoutChance()


def lora_bytes(pipeline: Any) -> int:  # noqa: ANN401 - diffusers is not typed
    """Bytes that the LoRAs of a pipeline take."""
    from torch import nn

    parameters: dict[str, Tensor] = {
        f"{part}.{name}": parameter
        for part, module in pipeline.components.items()
        if isinstance(module, nn.Module)
        for name, parameter in module.named_parameters()
        if ".lora_" in name
    }
    return sum(parameter.nbytes for parameter in parameters.values())


def controlnet_folder(name: str, context: LoadContext, unet: Mapping[str, Any]) -> Path:
    """The folder of a ControlNet; checked against the UNet's config. Raises `WeightsError`."""
    folder = Path(name)
    if not folder.is_dir():
        match = _REPOSITORY.fullmatch(name)
        if match is None or match["filename"]:
            raise WeightsError(
                f"{name!r} is no folder, and no repository of the hub", "Give a folder, or owner/name"
            )
        folder = hub_file(name, "config.json", context).parent
    control_of(name)
    config = read_config(folder)
    if config.get("_class_name") != "ControlNetModel":
        raise WeightsError(f"{folder} holds no ControlNet", "Name a folder of diffusers that does")
    _check_width(f"{name} is a ControlNet", config.get("cross_attention_dim"), unet.get("cross_attention_dim"))
    if folder != Path(name):
        hub_file(name, "diffusion_pytorch_model.safetensors", context)
    return folder


def control_of(name: str) -> str:
    """What a ControlNet looks at, by its name as IOPaint tells it. Raises `WeightsError`."""
    for kind in ("canny", "inpaint"):
        if kind in Path(name).name.lower():
            return kind
    raise WeightsError(
        f"The name of {name} says neither canny nor inpaint, so what it looks at is not known",
        "Take a ControlNet for one of these; a folder's name is to say for which",
    )


def control_image(name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> PIL.Image.Image | Tensor:
    """What a ControlNet is shown of a picture: its outlines, or what the mask leaves of it."""
    import cv2
    import numpy as np
    import PIL.Image
    import torch

    if control_of(name) == "canny":
        return PIL.Image.fromarray(np.repeat(cv2.Canny(image, 100, 200)[..., None], 3, axis=2))
    # Source: huggingface.co/lllyasviel/control_v11p_sd15_inpaint, where -1 says what is to be painted.
    shown = np.where(mask[..., None] > 127, np.float32(-1), image.astype(np.float32) / 255)
    return torch.from_numpy(shown.transpose(2, 0, 1)[None].copy())


def _lora_file(name: str, context: LoadContext) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    match = _REPOSITORY.fullmatch(name)
    if match is None:
        raise WeightsError(
            f"{name!r} is no file, and none of the hub",
            "Give a safetensors file, owner/name, or owner/name/file.safetensors",
        )
    return hub_file(match["repo"], match["filename"] or _LORA_FILE, context)


def _check_lora(file: Path, width: object) -> None:
    specs = TensorFiles((file,)).specs
    if not any("lora" in name for name in specs):
        raise WeightsError(f"{file} holds no LoRA", "Name a LoRA, as safetensors")
    for name, spec in specs.items():
        if _ATTENDS.search(name) and len(spec.shape) > 1:
            _check_width(f"{file} is a LoRA", spec.shape[1], width)


def _check_width(what: str, width: object, wanted: object) -> None:
    if width == wanted:
        return
    family, other = (_FAMILIES.get(size, "another family") for size in (width, wanted))  # type: ignore[call-overload] # any object may be looked up
    raise WeightsError(
        f"{what} for {family}, and this model is of {other} ({width} and {wanted} wide)",
        "Take one that was made for models like this",
    )


def _misfit(file: Path, why: str) -> WeightsError:
    return WeightsError(f"{file} does not fit this model: {why}", "Take a LoRA made for models like this")
