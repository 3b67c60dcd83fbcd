"""Interactive segmentation: SAM, SAM-HQ, SAM 2 and 2.1 by clicks, boxes and an earlier mask, SAM 3 by words."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iopaint_core import MaskParameters, ModelInfo, Task, WeightFile, WeightsError, hookimpl, missing_packages
from iopaint_plugins.interactive_seg.parameters import Sam3Parameters

if TYPE_CHECKING:
    from iopaint_core import LoadContext, MaskModel

_INSTALL = "pip install 'iopaint-core[segment]'"
_SAM3_LICENSE = "https://github.com/facebookresearch/sam3/blob/main/LICENSE"


class _Family(NamedTuple):
    """Models of one architecture, of one class of transformers."""

    network: str
    """That class, by name."""
    package: str
    """The folder of `transformers.models` that it is in."""
    title: str
    homepage: str
    dtype: str = "float16"
    """Of the weights on a GPU. Clicks are placed by numbers of it, and `bfloat16` has eight bits for them."""
    license: str = "Apache-2.0"


_FAMILIES = {
    "sam": _Family("SamModel", "sam", "SAM", "https://github.com/facebookresearch/segment-anything"),
    "sam_hq": _Family("SamHQModel", "sam_hq", "SAM-HQ", "https://github.com/SysCV/sam-hq"),
    "sam2": _Family("Sam2Model", "sam2", "SAM 2", "https://github.com/facebookresearch/sam2"),
    "sam2_1": _Family("Sam2Model", "sam2", "SAM 2.1", "https://github.com/facebookresearch/sam2"),
    "sam3": _Family(
        "Sam3Model", "sam3", "SAM 3", "https://github.com/facebookresearch/sam3", "bfloat16", _SAM3_LICENSE
    ),
}


class _Row(NamedTuple):
    """A model: its family, its repository on the hub, and its size in words."""

    family: str
    repo: str
    size: str


MODELS = {
    "vit_b": _Row("sam", "facebook/sam-vit-base", "base"),
    "vit_l": _Row("sam", "facebook/sam-vit-large", "large"),
    "vit_h": _Row("sam", "facebook/sam-vit-huge", "huge"),
    "sam_hq_vit_b": _Row("sam_hq", "syscv-community/sam-hq-vit-base", "base"),
    "sam_hq_vit_l": _Row("sam_hq", "syscv-community/sam-hq-vit-large", "large"),
    "sam_hq_vit_h": _Row("sam_hq", "syscv-community/sam-hq-vit-huge", "huge"),
    "sam2_tiny": _Row("sam2", "facebook/sam2-hiera-tiny", "tiny"),
    "sam2_small": _Row("sam2", "facebook/sam2-hiera-small", "small"),
    "sam2_base": _Row("sam2", "facebook/sam2-hiera-base-plus", "base plus"),
    "sam2_large": _Row("sam2", "facebook/sam2-hiera-large", "large"),
    "sam2_1_tiny": _Row("sam2_1", "facebook/sam2.1-hiera-tiny", "tiny"),
    "sam2_1_small": _Row("sam2_1", "facebook/sam2.1-hiera-small", "small"),
    "sam2_1_base": _Row("sam2_1", "facebook/sam2.1-hiera-base-plus", "base plus"),
    "sam2_1_large": _Row("sam2_1", "facebook/sam2.1-hiera-large", "large"),
    "sam3": _Row("sam3", "facebook/sam3", ""),
}
"""By name."""
_FILES = ("config.json", "model.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MOBILE_SAM = ModelInfo(
    name="mobile_sam",
    task=Task.SEGMENT,
    license="Apache-2.0",
    unavailable="transformers has no TinyViT, the image encoder of MobileSAM. Take sam2_1_tiny, the smallest here",
    title="MobileSAM",
    description="Finds what is clicked on or boxed.",
    homepage="https://github.com/ChaoningZhang/MobileSAM",
)


@hookimpl
def iopaint_available_models() -> list[ModelInfo]:
    """Announce IOPaint's fifteen, and `sam3`."""
    unavailable = {name: _unavailable(family) for name, family in _FAMILIES.items()}
    return [*(_info(name, row, unavailable[row.family]) for name, row in MODELS.items()), MOBILE_SAM]


def _info(name: str, row: _Row, unavailable: str) -> ModelInfo:
    family = _FAMILIES[row.family]
    by_words = row.family == "sam3"
    return ModelInfo(
        name=name,
        task=Task.SEGMENT,
        weights=tuple(
            WeightFile(repo=row.repo, filename=file) for file in (*_FILES, *(_TOKENIZER_FILES if by_words else ()))
        ),
        license=family.license,
        parameters=Sam3Parameters if by_words else MaskParameters,
        unavailable=unavailable,
        title=f"{family.title} {row.size}".strip(),
        description="Finds each thing that words name, or that is like what is boxed."
        if by_words
        else "Finds what is clicked on or boxed.",
        homepage=family.homepage,
    )


def _unavailable(family: _Family) -> str:
    """Return why a family can't be used, and the remedy, without an import of its library."""
    cuts_out_boxes = ("torchvision",) if family.package == "sam3" else ()
    missing = missing_packages("torch", *cuts_out_boxes, "transformers", install=_INSTALL)
    spec = None if missing else importlib.util.find_spec("transformers")
    folders = (spec and spec.submodule_search_locations) or ()
    if not folders or any(Path(folder, "models", family.package).is_dir() for folder in folders):
        return missing
    return f"The transformers that is installed has no {family.title}: pip install -U transformers"


@hookimpl
def iopaint_load_model(info: ModelInfo, context: LoadContext) -> MaskModel:
    """Load the network from its repository on the hub. Raises `WeightsError` for files that can't be read."""
    import json

    import transformers

    from iopaint_core import TensorFiles, module_component
    from iopaint_plugins.interactive_seg.models import Sam3, Segmenter

    row = MODELS[info.name]
    family = _FAMILIES[row.family]
    config_path, weights_path = map(context.weights, _FILES)
    try:
        config = json.loads(config_path.read_bytes())
        prefix = ""
        if "detector_config" in config:  # of the whole of SAM 3, which follows things through videos, too
            config, prefix = config["detector_config"], "detector_model."
        if not isinstance(config, dict):
            raise TypeError(f"expected an object, got {type(config).__name__}")
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{config_path} can't be read: {error}", "Get the file again") from error
    network = context.share(
        {
            "network": module_component(
                getattr(transformers, family.network),
                TensorFiles((weights_path,), prefix=prefix),
                context,
                config=config,
                dtype=context.dtype or ("float32" if context.device in {"cpu", "mps"} else family.dtype),
            )
        }
    )["network"]
    if row.family != "sam3":
        return Segmenter(network, letterbox=family.package in {"sam", "sam_hq"})
    tokenizer, _ = map(context.weights, _TOKENIZER_FILES)
    return Sam3(network, transformers.AutoTokenizer.from_pretrained(tokenizer.parent, local_files_only=True))
