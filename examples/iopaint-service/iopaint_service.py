"""A model that is a web service, and one that needs an extra.

The service takes a PNG whose transparent pixels are to be repainted, and answers with the repainted PNG. What a
caller chooses goes with it as a query; what the host decides does not.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from annotated_types import Ge, Le, MaxLen

from iopaint_core import (
    Hint,
    InpaintModel,
    InpaintParameters,
    LoadOptions,
    ModelError,
    ModelInfo,
    ModelLoadError,
    Secret,
    hookimpl,
    missing_packages,
)


@dataclass(frozen=True)
class ServiceOptions(LoadOptions):
    """What the host decides, and no request may change."""

    url: str = "http://127.0.0.1:8300/erase"
    """Where the service is."""
    api_key: Secret = Secret("")
    """What the host is known by there."""
    timeout: float = 60.0
    """Seconds that an answer may take."""


class Style(StrEnum):
    PHOTO = "photo"
    DRAWING = "drawing"


@dataclass(frozen=True)
class ServiceParameters(InpaintParameters):
    """What a call of the service chooses."""

    wish: Annotated[str, MaxLen(200), Hint(widget="textarea")] = ""
    """What to paint, in words; empty to erase."""
    style: Style = Style.PHOTO
    """What the image is."""
    detail: Annotated[float, Ge(0), Le(1), Hint(widget="slider")] = 0.5
    """How much of it to invent: 0 is smooth."""
    tries: Annotated[int, Ge(1), Le(4)] = 1
    """How many images the service paints, to return the best."""
    grain: bool = True
    """Whether to add the grain of film."""


class Service(InpaintModel[ServiceParameters]):
    concurrency = 8
    device_bound = False  # a call only waits for the service, and keeps no other model waiting

    def __init__(self, options, key):
        import httpx

        self._url = options.url
        self._client = httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=options.timeout)

    def forward(self, image, mask, parameters):
        import cv2
        import httpx
        import numpy as np

        asked = {name: getattr(parameters, name) for name in ("wish", "style", "detail", "tries", "grain")}
        sent = cv2.imencode(".png", np.dstack((image[..., ::-1], 255 - mask)))[1].tobytes()
        try:
            answer = self._client.post(self._url, content=sent, params=asked).raise_for_status()
        except httpx.HTTPError as error:
            raise ModelError(
                f"{self._url} gave no picture: {error}", "Look at the options url and api_key of service"
            ) from error
        painted = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        if painted is None:
            raise ModelError(f"{self._url} answered with something else than a picture", "Look at the option url")
        return painted[..., ::-1]

    def close(self):
        self._client.close()


class Biharmonic(InpaintModel):
    def forward(self, image, mask, parameters):
        from skimage.restoration import inpaint_biharmonic

        painted = inpaint_biharmonic(image, mask > 0, channel_axis=-1)
        return (painted.clip(0, 1) * 255).round().astype("uint8")


@hookimpl
def iopaint_available_models():
    needs = missing_packages("skimage", install="pip install 'iopaint-service[local]'")
    return [
        ModelInfo(name="service-erase", parameters=ServiceParameters, load_options=ServiceOptions),
        ModelInfo(name="biharmonic", unavailable=needs),
    ]


@hookimpl
def iopaint_load_model(info, context):
    if info.name == "biharmonic":
        return Biharmonic()
    if context.offline:
        raise ModelLoadError("service-erase opens connections, and none may be opened", "Unset IOPAINT_OFFLINE")
    key = context.options.api_key.get_secret_value().strip()
    if not key:
        raise ModelLoadError("service-erase needs a key", "Set IOPAINT_SERVICE_API_KEY")
    if not (key.isascii() and key.isprintable()):  # the error of an HTTP library would show it
        raise ModelLoadError("The key has characters that no HTTP header may have", "Copy it again")
    return Service(context.options, key)
