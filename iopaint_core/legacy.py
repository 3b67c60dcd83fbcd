"""Plugins of the app IOPaint, as models of this framework."""

from __future__ import annotations

import base64
import functools
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from iopaint_core.errors import ContractError, InputError
from iopaint_core.hookspecs import BasePlugin
from iopaint_core.models import ImageModel, MaskModel, model_name
from iopaint_core.schema import ModelInfo, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core.imaging import Image, Mask
    from iopaint_core.parameters import ImageParameters, MaskParameters
    from iopaint_core.schema import LoadContext

_SCALE = 2.0  # IOPaint's default


class Generator(Protocol):
    """What IOPaint calls a plugin."""

    def gen_image(self, rgb_np_img: NDArray[np.uint8], req: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - IOPaint's own class
        """Return an image in BGR, or in RGBA."""
        ...

    def gen_mask(self, rgb_np_img: NDArray[np.uint8], req: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - IOPaint's own class
        """Return a mask in grey, or in BGR: 255 inside."""
        ...


@dataclass(frozen=True)
class RunPluginRequest:
    """The request that IOPaint hands to a plugin."""

    name: str
    clicks: list[list[int]]
    """Points `[x, y, 0 or 1]`: 1 on what is meant, 0 on what is not."""
    scale: float
    rgb: Image

    @functools.cached_property
    def image(self) -> str:
        """The image as a PNG file in base64, made when it is asked for."""
        import cv2

        return base64.b64encode(cv2.imencode(".png", self.rgb[:, :, ::-1])[1].tobytes()).decode()


class LegacyPlugin(BasePlugin):
    """A class that was written as a plugin of IOPaint: what it makes of images, and its masks, are models.

    A class that sets `support_gen_image` has an image model, one that sets `support_gen_mask` a mask model.
    `models` names them, or announces them as `ModelInfo`, by default by the class's `name`; where a class has both
    kinds, the mask model of `NAME` is `NAME-mask`, and both share one instance. The class is called with those of
    `name`, `model_name` and `device` that it takes, and with `arguments`, when the first of them is loaded.

    Raises `ContractError` for a class with neither.

        plugin = LegacyPlugin(AnimeSeg, ["anime-seg"])
    """

    def __init__(
        self, cls: Callable[..., Generator], models: Iterable[str | ModelInfo] = (), **arguments: object
    ) -> None:
        self._cls = cls
        self._arguments = arguments
        self.name = str(getattr(cls, "name", None) or getattr(cls, "__name__", "plugin"))
        announced = [ModelInfo(model) if isinstance(model, str) else model for model in models or (self.name,)]
        images, masks = (getattr(cls, f"support_gen_{kind}", False) is True for kind in ("image", "mask"))
        if not (images or masks):
            raise ContractError(
                f"invalid LegacyPlugin: expected a class with support_gen_image or support_gen_mask, got {cls!r}",
                "Set one of them to True, as in IOPaint",
            )
        self._models: list[ModelInfo] = []
        self._instances: dict[str, str] = {}
        """The name that IOPaint's class knows, for that of each model."""
        for info in announced:
            if images:
                self._add(info, info.name, info.task or Task.RESTORE)
            if masks:
                name = f"{info.name}-mask" if images else info.name
                self._add(replace(info, name=name), info.name, Task.SEGMENT)

    def _add(self, info: ModelInfo, instance: str, task: Task) -> None:
        self._models.append(replace(info, task=task))
        self._instances[info.name] = instance

    @property
    def available_models(self) -> list[ModelInfo]:
        """Its models."""
        return self._models

    def load_model(self, info: ModelInfo, context: LoadContext) -> ImageModel | MaskModel:
        """Make the instance, or take the one that its other kind made."""
        from iopaint_core.entries import Component
        from iopaint_core.session import nbytes_of

        name = self._instances[info.name]
        taken = inspect.signature(self._cls).parameters.keys()
        given = {"name": name, "model_name": name, "device": context.device}
        arguments = {key: value for key, value in given.items() if key in taken} | self._arguments
        part: Component[Generator] = Component(
            (id(self), name, context.device),
            lambda: self._cls(**arguments),
            nbytes=0,
            device=context.device,
            measure=nbytes_of,
            exclusive=True,
        )
        generator: Generator = context.share({"plugin": part})["plugin"]
        return (_Masks if info.task is Task.SEGMENT else _Images)(self.name, generator)


class _Images(ImageModel):
    def __init__(self, plugin: str, generator: Generator) -> None:
        self._plugin, self._generator = plugin, generator

    def forward(self, image: Image, parameters: ImageParameters) -> Image:
        scale = _SCALE if parameters.scale is None else parameters.scale
        made = self._generator.gen_image(image, RunPluginRequest(self._plugin, [], scale, image))
        return made[:, :, ::-1] if made.shape[2:] == (3,) else made


class _Masks(MaskModel):
    def __init__(self, plugin: str, generator: Generator) -> None:
        self._plugin, self._generator = plugin, generator

    def forward(self, image: Image, parameters: MaskParameters) -> Mask:
        if parameters.boxes or parameters.mask_input is not None:
            raise InputError(f"{model_name(self)} takes clicks alone, got boxes or a mask", "Leave them out")
        clicks = [[click.x, click.y, int(click.positive)] for click in parameters.clicks]
        made = self._generator.gen_mask(image, RunPluginRequest(self._plugin, clicks, _SCALE, image))
        return made[:, :, 0] if made.ndim == 3 else made
