"""A pipeline as a model: what is asked of it, in the pipeline's words."""

from __future__ import annotations

import base64
import copy
import inspect
import io
import random
from typing import TYPE_CHECKING, Any

from iopaint_core import (
    InpaintModel,
    InputError,
    ModelError,
    Result,
    report_preview,
    report_progress,
    wants_preview,
)
from iopaint_plugins.diffusion.adapters import control_image, lora_bytes, lora_names
from iopaint_plugins.diffusion.parameters import Adapters, DiffusionParameters, Sampler
from iopaint_plugins.diffusion.samplers import scheduler_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray
    from torch import Tensor

    from iopaint_plugins.diffusion.pipelines import Row


_MAX_EXAMPLE = 25_000_000
"""Pixels of an example image, of which the model sees 224 x 224; checked before it is decoded."""


class DiffusionModel(InpaintModel[DiffusionParameters]):
    """Runs a pipeline on whole pictures of 512 pixels a side and more."""

    whole = True
    mask_blur = True
    min_size = 512

    def __init__(self, pipeline: Any, row: Row, adapters: Adapters) -> None:  # noqa: ANN401 - diffusers is not typed
        self._pipeline = pipeline
        self._row = row
        self._adapters = adapters
        self.nbytes = lora_bytes(pipeline)
        self._config = pipeline.scheduler.config
        self._reports_step_end = "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters
        self._schedulers: dict[Sampler, Any] = {}
        self.pad_multiple = row.multiple

    def forward(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], parameters: DiffusionParameters) -> Result:
        """Repaint where the mask is 255; `info` holds the seed, which may have been drawn."""
        import numpy as np
        import PIL.Image
        import torch

        pipeline, row = self._pipeline, self._row
        if (parameters.variant or Adapters()).named != self._adapters.named:
            raise InputError(
                "This model was loaded without the LoRAs or ControlNets of the parameters, or with others",
                "Call ModelManager.inpaint, or load it with variant=parameters.variant",
            )
        if row.samplers:
            sampler = Sampler.LCM if getattr(parameters, "sd_lcm_lora", False) else parameters.sd_sampler
            pipeline.scheduler = self._new_scheduler(sampler)
        if names := lora_names(self._adapters):
            pipeline.set_adapters(names, [*(lora.scale for lora in parameters.loras), 1.0][: len(names)])
        seed = random.SystemRandom().randrange(2**31) if parameters.sd_seed == -1 else parameters.sd_seed
        height, width = mask.shape
        size = {"height": height, "width": width, "max_area": height * width}
        arguments = {
            **row.fixed,
            **{name: size[name] for name in row.size},
            **self._taken(parameters),
            "image": PIL.Image.fromarray(image),
            "generator": torch.Generator("cpu").manual_seed(seed),
        }
        if nets := self._adapters.controlnets:
            arguments["control_image"] = [control_image(name, image, mask) for name in nets]
            arguments["controlnet_conditioning_scale"] = [parameters.controlnet_conditioning_scale] * len(nets)
        if row.mask:
            arguments["mask_image"] = PIL.Image.fromarray(mask)
        result = pipeline(**arguments, **self._reporting(parameters.sd_steps, mask.shape))
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise ModelError(
                "The model's safety checker found the picture unfit to be shown, and gave a black one",
                "Take another seed or prompt; or leave the checker out: -o safety_checker=false, or "
                "ModelManager(options={'diffusion': {'safety_checker': False}})",
            )
        painted: PIL.Image.Image = result.images[0]
        if painted.size != (width, height):  # some choose a size of their own
            painted = painted.resize((width, height), PIL.Image.Resampling.LANCZOS)
        array = np.asarray(painted if painted.mode == "RGB" else painted.convert("RGB"))
        return Result(image=array, info={"seed": seed})

    def _new_scheduler(self, sampler: Sampler) -> Any:  # noqa: ANN401 - diffusers is not typed
        """One that no call has used: a copy, but for what schedulers replace and never write into.

        It takes a thirtieth of the time that making one does.
        """
        import torch

        if sampler not in self._schedulers:
            self._schedulers[sampler] = scheduler_for(sampler, self._config)
        unused = self._schedulers[sampler]
        kept = [unused.config, *(value for value in vars(unused).values() if isinstance(value, torch.Tensor))]
        return copy.deepcopy(unused, {id(value): value for value in kept})

    def _taken(self, parameters: DiffusionParameters) -> dict[str, Any]:
        taken = {theirs: getattr(parameters, ours) for ours, theirs in self._row.takes.items()}
        if "example_image" in taken:
            taken["example_image"] = _example(taken["example_image"])
        return taken

    def _reporting(self, steps: int, size: tuple[int, int]) -> Mapping[str, Any]:
        """What makes a pipeline tell of its steps; a report that raises ends it."""

        def on_step_end(pipeline: object, step: int, timestep: object, state: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - diffusers' own
            on_step(step, timestep, state["latents"])
            return state

        def on_step(step: int, timestep: object, latents: Tensor) -> None:  # noqa: ARG001 - diffusers' own
            report_progress(min(step + 1, steps), steps)
            if wants_preview():
                self._show(latents, *size)

        if self._reports_step_end:
            return {"callback_on_step_end": on_step_end}
        return {"callback": on_step, "callback_steps": 1}

    def _show(self, latents: Tensor, height: int, width: int) -> None:
        """Report a preview, where the VAE is one that takes latents as they are, once unpacked."""
        import numpy as np
        import torch
        from diffusers import AutoencoderKL

        pipeline = self._pipeline
        if not isinstance(getattr(pipeline, "vae", None), AutoencoderKL):
            return
        vae: Any = pipeline.vae
        if vae.config.force_upcast and vae.dtype == torch.float16:
            return
        if latents.ndim == 3:
            latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        with torch.no_grad():
            scaled = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0)
            decoded = vae.decode(scaled, return_dict=False)[0]
        (shown,) = pipeline.image_processor.postprocess(decoded, output_type="pil")
        report_preview(np.asarray(shown))


def _example(text: str | None) -> PIL.Image.Image:
    import PIL.Image

    if not text:
        raise InputError(
            "This model paints what an example shows, and there is none",
            "Give paint_by_example_example_image: a picture file in base64",
        )
    try:
        with PIL.Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as example:
            if example.width * example.height > _MAX_EXAMPLE:
                raise ValueError(f"it has {example.width} x {example.height} pixels, more than {_MAX_EXAMPLE:,}")
            return example.convert("RGB")
    except (ValueError, OSError, PIL.Image.DecompressionBombError) as error:
        raise InputError(
            f"The example image can't be read: {error}", "Give the bytes of a JPEG or PNG file, in base64"
        ) from error
