"""Background removal: cuts out a subject by networks in ONNX files, run by onnxruntime.

U-2-Net: X. Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern
Recognition 106, 2020. IS-Net: X. Qin et al., "Highly Accurate Dichotomous Image Segmentation", ECCV 2022.
BiRefNet: P. Zheng et al., "Bilateral Reference for High-Resolution Dichotomous Image Segmentation", CAAI AIR 2024.
The files are those that rembg publishes, and Bria's; pictures are prepared, and mattes made, as rembg does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from iopaint_core import (
    ImageModel,
    LoadOptions,
    ModelInfo,
    ModelOutputError,
    ModelType,
    Result,
    Task,
    WeightFile,
    hookimpl,
    missing_packages,
    report_progress,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from iopaint_core import ImageParameters, LoadContext, OnnxSession

_RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0"
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
_CLOTHES = ("upper body", "lower body", "full body")


class Network(NamedTuple):
    """What a network takes and gives."""

    size: int = 320
    """Side of the square that a picture is stretched to, in pixels."""
    norm: tuple[tuple[float, float, float], tuple[float, float, float]] = _IMAGENET
    """Mean and standard deviation of red, green, blue in 0 … 1."""
    gives_logits: bool = False
    """It gives log-odds, of which the sigmoid is the matte."""
    labels: tuple[str, ...] = ()
    """What its channels after the first, the background, show, of which the largest counts; empty for a matte."""


@dataclass(frozen=True)
class RemoveBGOptions(LoadOptions):
    """How networks that remove backgrounds are run."""

    provider: str = ""
    """Execution provider of onnxruntime, such as `DmlExecutionProvider`; by default, the one for the device."""


class RemoveBG(ImageModel):
    """Cuts out a subject: an RGBA image whose alpha is the matte, and the matte as a mask.

    A network that tells clothes apart gives a mask for each kind, with its label, and the cut-out of all.
    """

    def __init__(self, session: OnnxSession, network: Network) -> None:
        self._session = session
        self._network = network

    def forward(
        self,
        image: NDArray[np.uint8],
        parameters: ImageParameters,  # noqa: ARG002 - it has none of its own
    ) -> Result:
        """Return the image unchanged, with an empty mask, where the network finds nothing.

        Raises `ModelOutputError` if the network gives something else than finite values of its channels.
        """
        import numpy as np

        report_progress(0, 1)
        (name,) = self._session.inputs
        values = self._session.run({name: _prepared(image, self._network)})[0]
        channels = 1 + len(self._network.labels)
        if values.ndim != 4 or values.shape[1] < channels or not np.isfinite(values).all():
            raise ModelOutputError(
                f"The network gave {values.dtype} of shape {values.shape}, expected finite values of shape "
                f"(1, {channels}, H, W)",
                "Give the file that the model was announced with; on a GPU, try the device cpu",
            )
        masks = _clothes(values[0]) if self._network.labels else _matte(values[0, 0], self._network)[None]
        masks = np.stack([_resized(mask, image.shape[1], image.shape[0]) for mask in masks])
        matte = masks.max(axis=0)
        labels = self._network.labels
        if not matte.any():
            return Result(image=image, masks=masks, labels=labels, info={"unchanged": True})
        return Result(image=np.dstack([image, matte]), masks=masks, labels=labels)


def _prepared(image: NDArray[np.uint8], network: Network) -> NDArray[np.float32]:
    """Stretch an image to a square, divide it by its largest value, normalise it: `float32` `(1, 3, S, S)`."""
    import numpy as np

    pixels = _resized(image, network.size, network.size).transpose(2, 0, 1)
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in network.norm)
    brightest = np.float32(max(pixels.max(), 1e-6))
    return np.asarray((pixels / brightest - mean) / deviation, np.float32)[None]


def _matte(values: NDArray[np.floating], network: Network) -> NDArray[np.uint8]:
    """Spread what a network gave, `(H, W)`, over 0 … 255; all 0 if it is the same everywhere."""
    import numpy as np

    if network.gives_logits:
        values = 1 / (1 + np.exp(-np.clip(values, -80, 80)))
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    spread: NDArray[np.uint8] = ((values - low) / (high - low) * 255).astype(np.uint8)
    return spread


def _clothes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return a mask `(H, W)` of 0 and 255 for each channel after the first, where that is the largest."""
    import numpy as np

    largest = values.argmax(axis=0)
    return np.stack([np.where(largest == kind, 255, 0) for kind in range(1, len(_CLOTHES) + 1)]).astype(np.uint8)


def _resized(array: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    import numpy as np
    import PIL.Image

    return np.asarray(PIL.Image.fromarray(array).resize((width, height), PIL.Image.Resampling.LANCZOS))


def _of_rembg(filename: str, md5: str, size: int | None) -> WeightFile:
    return WeightFile(url=f"{_RELEASE}/{filename}", md5=md5, size=size)


def _of_birefnet(filename: str, md5: str, size: int | None = None) -> WeightFile:
    return _of_rembg(f"BiRefNet-{filename}.onnx", md5, size)


class _Model(NamedTuple):
    file: WeightFile
    network: Network
    license: str
    title: str
    description: str
    homepage: str
    commercial: bool = True


_U2NET = "https://github.com/xuebinqin/U-2-Net"
_ISNET = "https://github.com/xuebinqin/DIS"
_BIREFNET = "https://github.com/ZhengPeng7/BiRefNet"
_BIREFNET_NETWORK = Network(1024, gives_logits=True)
_MODELS = {
    "u2net": _Model(
        _of_rembg("u2net.onnx", "60024c5c889badc19c04ad937298a77b", 175_997_641),
        Network(),
        "Apache-2.0",
        "U2-Net",
        "Cuts out what stands out in a picture.",
        _U2NET,
    ),
    "u2netp": _Model(
        _of_rembg("u2netp.onnx", "8e83ca70e441ab06c318d82300c84806", 4_574_861),
        Network(),
        "Apache-2.0",
        "U2-Net, small",
        "Cuts out what stands out in a picture: the smallest and quickest.",
        _U2NET,
    ),
    "u2net_human_seg": _Model(
        _of_rembg("u2net_human_seg.onnx", "c09ddc2e0104f800e3e1bb4652583d1f", 175_997_641),
        Network(),
        "Apache-2.0",
        "U2-Net for people",
        "Cuts out people.",
        _U2NET,
    ),
    "u2net_cloth_seg": _Model(
        _of_rembg("u2net_cloth_seg.onnx", "2434d1f3cb744e0e49386c906e5a08bb", 176_194_565),
        Network(768, labels=_CLOTHES),
        "MIT",
        "U2-Net for clothes",
        "Cuts out clothes, with a mask each for the upper body, the lower body and the full body.",
        "https://github.com/levindabhi/cloth-segmentation",
    ),
    "silueta": _Model(
        _of_rembg("silueta.onnx", "55e59e0d8062d2f5d013f4725ee84782", 44_173_029),
        Network(),
        "Apache-2.0",
        "Silueta",
        "Cuts out what stands out in a picture: U2-Net in a quarter of its size.",
        "https://github.com/xuebinqin/U-2-Net/issues/295",
    ),
    "isnet-general-use": _Model(
        _of_rembg("isnet-general-use.onnx", "fc16ebd8b0c10d971d3513d564d01e29", 178_648_008),
        Network(1024, _HALF),
        "Apache-2.0",
        "IS-Net",
        "Cuts out objects of any kind, with fine edges.",
        _ISNET,
    ),
    "isnet-anime": _Model(
        _of_rembg("isnet-anime.onnx", "6f184e756bb3bd901c8849220a83e38e", 176_069_933),
        Network(1024, (_IMAGENET[0], (1.0, 1.0, 1.0))),
        "Apache-2.0",
        "IS-Net for anime",
        "Cuts out characters of drawings.",
        "https://github.com/SkyTNT/anime-segmentation",
    ),
    "birefnet-general": _Model(
        _of_birefnet("general-epoch_244", "7a35a0141cbbc80de11d9c9a28f52697", 972_666_916),
        _BIREFNET_NETWORK,
        "MIT",
        "BiRefNet",
        "Cuts out objects of any kind, with the finest edges; slow without a GPU.",
        _BIREFNET,
    ),
    "birefnet-general-lite": _Model(
        _of_birefnet("general-bb_swin_v1_tiny-epoch_232", "4fab47adc4ff364be1713e97b7e66334", 224_005_088),
        _BIREFNET_NETWORK,
        "MIT",
        "BiRefNet, small",
        "Cuts out objects of any kind: BiRefNet in a quarter of its size.",
        _BIREFNET,
    ),
    "birefnet-portrait": _Model(
        _of_birefnet("portrait-epoch_150", "c3a64a6abf20250d090cd055f12a3b67"),
        _BIREFNET_NETWORK,
        "MIT",
        "BiRefNet for portraits",
        "Cuts out people in portraits, hair by hair.",
        _BIREFNET,
    ),
    "birefnet-dis": _Model(
        _of_birefnet("DIS-epoch_590", "2d4d44102b446f33a4ebb2e56c051f2b"),
        _BIREFNET_NETWORK,
        "MIT",
        "BiRefNet, dichotomous",
        "Cuts out objects with thin and intricate parts.",
        _BIREFNET,
    ),
    "birefnet-hrsod": _Model(
        _of_birefnet("HRSOD_DHU-epoch_115", "c017ade5de8a50ff0fd74d790d268dda"),
        _BIREFNET_NETWORK,
        "MIT",
        "BiRefNet, salient",
        "Cuts out what stands out in pictures of high resolution.",
        _BIREFNET,
    ),
    "birefnet-cod": _Model(
        _of_birefnet("COD-epoch_125", "f6d0d21ca89d287f17e7afe9f5fd3b45"),
        _BIREFNET_NETWORK,
        "MIT",
        "BiRefNet, concealed",
        "Cuts out what hardly differs from its background: camouflaged animals.",
        _BIREFNET,
    ),
    "birefnet-massive": _Model(
        _of_birefnet("massive-TR_DIS5K_TR_TEs-epoch_420", "33e726a2136a3d59eb0fdf613e31e3e9"),
        _BIREFNET_NETWORK,
        "MIT",
        "BiRefNet, large training set",
        "Cuts out objects of any kind: BiRefNet trained on more pictures.",
        _BIREFNET,
    ),
    "briaai/RMBG-1.4": _Model(
        WeightFile(
            repo="briaai/RMBG-1.4",
            filename="onnx/model.onnx",
            sha256="8cafcf770b06757c4eaced21b1a88e57fd2b66de01b8045f35f01535ba742e0f",
            size=176_153_355,
        ),
        Network(1024, _HALF),
        "https://huggingface.co/briaai/RMBG-1.4",
        "RMBG 1.4",
        "Cuts out objects of any kind: IS-Net trained by Bria on licensed pictures.",
        "https://huggingface.co/briaai/RMBG-1.4",
        commercial=False,
    ),
    "briaai/RMBG-2.0": _Model(
        WeightFile(
            repo="briaai/RMBG-2.0",
            filename="onnx/model.onnx",
            sha256="5b486f08200f513f460da46dd701db5fbb47d79b4be4b708a19444bcd4e79958",
            size=1_024_331_469,
        ),
        Network(1024),
        "CC-BY-NC-4.0",
        "RMBG 2.0",
        "Cuts out objects of any kind: BiRefNet trained by Bria on licensed pictures.",
        "https://huggingface.co/briaai/RMBG-2.0",
        commercial=False,
    ),
}


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce the models that remove backgrounds."""
    unavailable = missing_packages("onnxruntime", install="pip install 'iopaint-core[matting]'")
    return [
        ModelInfo(
            name=name,
            type=ModelType.PLUGIN,
            task=Task.MATTING,
            weights=(model.file,),
            license=model.license,
            commercial=model.commercial,
            load_options=RemoveBGOptions,
            unavailable=unavailable,
            title=model.title,
            description=model.description,
            homepage=model.homepage,
        )
        for name, model in _MODELS.items()
    ]


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> RemoveBG:
    """Open the network. Raises `WeightsError` for a file with other inputs."""
    from iopaint_core import onnx_component

    network = _MODELS[info.name].network
    options = context.options
    provider = options.provider if isinstance(options, RemoveBGOptions) else ""
    part = onnx_component(context.weights(info.weights[0].filename), context, provider=provider)
    session: OnnxSession = context.share({"network": part})["network"]
    session.check_inputs((1, 3, network.size, network.size))
    return RemoveBG(session, network)
