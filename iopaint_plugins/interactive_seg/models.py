"""SAM and what followed it, as models of masks. The networks are those of transformers.

A. Kirillov et al., "Segment Anything", ICCV 2023; L. Ke et al., "Segment Anything in High Quality", NeurIPS 2023;
N. Ravi et al., "SAM 2: Segment Anything in Images and Videos", ICLR 2025; N. Carion et al., "SAM 3: Segment
Anything with Concepts", 2025. What goes in and comes out is brought to size as by the processors of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from iopaint_core import InputError, MaskModel, MaskParameters, Result
from iopaint_plugins.interactive_seg.parameters import Sam3Parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from iopaint_core import Image, Mask, ParametersLike

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_LOGIT = 10.0
"""What stands for a pixel that an earlier mask covers, and its negative for others: SAM 2's own number for masks
that a user gives (`_use_mask_as_output`)."""


class SamNetwork(Protocol):
    """What `SamModel`, `SamHQModel` and `Sam2Model` have in common."""

    device: torch.device
    dtype: torch.dtype
    config: _SamConfig

    def get_image_embeddings(self, pixel_values: Tensor) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return what the decoder needs of an image; for SAM-HQ, with what layers in between gave."""
        ...

    def __call__(self, **inputs: object) -> _SamOutput:
        """Return low-resolution logits of masks, and their scores."""
        ...


class _SamConfig(Protocol):
    prompt_encoder_config: _PromptConfig


class _PromptConfig(Protocol):
    image_size: int
    patch_size: int


class _SamOutput(Protocol):
    pred_masks: Tensor
    iou_scores: Tensor


class Sam3Network(Protocol):
    """What is used of `Sam3Model`."""

    device: torch.device
    dtype: torch.dtype
    config: _Sam3Config

    def get_vision_features(self, pixel_values: Tensor) -> object:
        """Return what the other parts need of an image."""
        ...

    def __call__(self, **inputs: object) -> _Sam3Output:
        """Return logits of instances, of their masks, and of whether there are any."""
        ...


class _Sam3Config(Protocol):
    image_size: int
    text_config: _TextConfig


class _TextConfig(Protocol):
    max_position_embeddings: int


class _Sam3Output(Protocol):
    pred_masks: Tensor
    pred_logits: Tensor
    presence_logits: Tensor


class Frame(NamedTuple):
    """How an image lies in the square that a network takes: resized, at its top left."""

    height: int
    """Of the image, in pixels, as `width`."""
    width: int
    size: int
    """Side of the square."""
    letterbox: bool
    """The image keeps its proportions, and its longer side fills the square; else it fills all of it."""

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the image in the square."""
        if not self.letterbox:
            return self.size, self.size
        scale = self.size / max(self.height, self.width)
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def pixels(self, image: Image, mean_and_std: tuple[tuple[float, ...], ...]) -> Tensor:
        """Return the square, normalised, `float32` of shape `(1, 3, size, size)`; 0 beside the image."""
        import torch
        from torch.nn import functional

        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        inner = functional.interpolate(planes, self.inner, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in mean_and_std)
        return self._padded((inner / 255 - mean) / std, self.size, 0.0)

    def mask_logits(self, mask: Mask, size: int) -> Tensor:
        """Return a mask of the image as the logits of one that fills a square of `size`: `(1, 1, size, size)`."""
        import torch
        from torch.nn import functional

        inner = [max(1, round(side * size / self.size)) for side in self.inner]
        planes = torch.from_numpy(mask > 127)[None, None].to(torch.uint8) * 255
        cover = functional.interpolate(planes, inner, mode="bilinear", antialias=True) / 255
        return self._padded((2 * cover - 1) * _LOGIT, size, -_LOGIT)

    def points(self, points: list[tuple[int, int]]) -> Tensor:
        """Return pixels of the image as places in the square, `float32` of shape `(N, 2)`: x, y.

        As in SAM, to which the network adds 0.5: to the middle of a pixel of the square.
        """
        import torch

        height, width = self.inner
        return torch.tensor(points, dtype=torch.float32) * torch.tensor([width / self.width, height / self.height])

    def masks(self, planes: Tensor, limit: float) -> NDArray[np.uint8]:
        """Return where planes `(N, h, w)` of the square exceed a limit, as masks of the image.

        One plane is enlarged at a time, and by OpenCV, which takes a third of torch's time for 24 million pixels.
        """
        import cv2
        import numpy as np

        masks = np.empty((len(planes), self.height, self.width), np.uint8)
        height, width = self.inner
        for number, plane in enumerate(planes.float().cpu().numpy()):
            inner = cv2.resize(plane, (self.size, self.size))[:height, :width] if self.letterbox else plane
            np.greater(cv2.resize(inner, (self.width, self.height)), limit, out=masks[number].view(np.bool_))
        masks *= 255
        return masks

    @staticmethod
    def _padded(planes: Tensor, size: int, value: float) -> Tensor:
        from torch.nn import functional

        height, width = planes.shape[-2:]
        return functional.pad(planes, (0, size - width, 0, size - height), value=value)


@dataclass(frozen=True)
class Encoded:
    """An image as the decoder takes it."""

    frame: Frame
    inputs: Mapping[str, object]
    """Arguments of the network, in place of the image."""


class Segmenter(MaskModel[MaskParameters]):
    """SAM, SAM-HQ, SAM 2: masks of what clicks, boxes and an earlier mask mean.

    A single click may mean a part or the whole: it gives three masks with scores, the best first. Several clicks,
    or a box, with or without an earlier mask, give one. Several boxes give one each, in their order; their scores
    stand in `info`, for those of a `Result` rank masks of one thing.
    """

    def __init__(self, network: SamNetwork, *, letterbox: bool) -> None:
        self._network = network
        self._letterbox = letterbox
        prompts = network.config.prompt_encoder_config
        self._size = prompts.image_size
        self._mask_size = 4 * (prompts.image_size // prompts.patch_size)

    def parse(self, image: Image, mask: Mask | None, parameters: ParametersLike) -> MaskParameters:
        """Check it before the image is encoded, too: raise `InputError` where nothing says what to find.

        More than one box does not go with clicks or a mask, which refine one thing.
        """
        parsed = super().parse(image, mask, parameters)
        clicks, boxes, earlier = parsed.clicks, parsed.boxes, parsed.mask_input
        if not boxes and not (clicks if earlier is not None else any(click.positive for click in clicks)):
            raise InputError(
                "Nothing says what to find: there is no box, and no click on it",
                "Click on what is meant, clicks=[[x, y, 1]], or box it, boxes=[[left, top, right, bottom]]",
            )
        if len(boxes) > 1 and (clicks or earlier is not None):
            raise InputError(
                f"{len(boxes)} boxes were given with clicks or a mask, which refine one thing",
                "Give one box with them, or several boxes alone",
            )
        return parsed

    def encode(self, image: Image) -> Encoded:
        """Run the image encoder, which takes nearly all of the time."""
        import torch

        frame = Frame(image.shape[0], image.shape[1], self._size, self._letterbox)
        with torch.inference_mode():
            pixels = frame.pixels(image, _IMAGENET).to(self._network.device, self._network.dtype)
            given = self._network.get_image_embeddings(pixels)
        values = given if isinstance(given, tuple) else (given,)
        return Encoded(frame, dict(zip(("image_embeddings", "intermediate_embeddings"), values, strict=False)))

    def decode(self, state: Encoded, parameters: MaskParameters) -> Result:
        """Run the decoder on what is asked; bring masks to the size of the image."""
        import torch

        prompts = self._prompts(state.frame, parameters)
        is_single = len(parameters.clicks) == 1 and not parameters.boxes and parameters.mask_input is None
        with torch.inference_mode():
            found = self._network(**state.inputs, **prompts, multimask_output=is_single)
            logits, scores = found.pred_masks[0].flatten(0, 1), found.iou_scores.flatten().float()
        if len(parameters.boxes) > 1:
            return Result(masks=state.frame.masks(logits, 0), info={"scores": scores.tolist()})
        scores, order = scores.sort(descending=True)
        return Result(masks=state.frame.masks(logits[order], 0), scores=tuple(scores.tolist()))

    def _prompts(self, frame: Frame, parameters: MaskParameters) -> dict[str, Tensor]:
        import torch

        clicks, boxes, mask = parameters.clicks, parameters.boxes, parameters.mask_input
        prompts = {}
        if clicks:
            prompts["input_points"] = frame.points([click[:2] for click in clicks])[None, None]
            prompts["input_labels"] = torch.tensor([[[int(click.positive) for click in clicks]]])
        if boxes:
            corners = frame.points([corner for box in boxes for corner in (box[:2], box[2:])])
            prompts["input_boxes"] = corners.reshape(1, -1, 4)
        if mask is not None:
            prompts["input_masks"] = frame.mask_logits(mask, self._mask_size).to(self._network.dtype)
        return {name: prompt.to(self._network.device) for name, prompt in prompts.items()}


class Sam3(MaskModel[Sam3Parameters]):
    """SAM 3: a mask of each thing that words name, or that is like those in boxes.

    The masks are of different things, the surest first, so their scores stand in `info`.
    """

    def __init__(self, network: Sam3Network, tokenizer: Callable[..., Mapping[str, Tensor]]) -> None:
        self._network = network
        self._tokenizer = tokenizer

    def parse(self, image: Image, mask: Mask | None, parameters: ParametersLike) -> Sam3Parameters:
        """Raise `InputError` for clicks and a mask, too, and where nothing says what to find."""
        parsed = super().parse(image, mask, parameters)
        if parsed.clicks or parsed.mask_input is not None:
            raise InputError(
                "sam3 finds things by words and boxes, and was given clicks or a mask",
                "Name what is meant, prompt='striped cat', or take a model for clicks: sam2_1_large",
            )
        if not parsed.prompt.strip() and not parsed.boxes:
            raise InputError(
                "Nothing says what to find: there are no words, and no box",
                "Name it, prompt='striped cat', or box an example, boxes=[[left, top, right, bottom]]",
            )
        return parsed

    def encode(self, image: Image) -> Encoded:
        """Run the image encoder, which takes most of the time."""
        import torch

        frame = Frame(image.shape[0], image.shape[1], self._network.config.image_size, letterbox=False)
        with torch.inference_mode():
            pixels = frame.pixels(image, _HALVES).to(self._network.device, self._network.dtype)
            return Encoded(frame, {"vision_embeds": self._network.get_vision_features(pixels)})

    def decode(self, state: Encoded, parameters: Sam3Parameters) -> Result:
        """Run the detector on what is asked; raise `InputError` for more words than it reads."""
        import torch

        prompts = self._prompts(state.frame, parameters)
        with torch.inference_mode():
            found = self._network(**state.inputs, **prompts)
            scores = (found.pred_logits.sigmoid() * found.presence_logits.sigmoid())[0].float()
            scores, order = scores.sort(descending=True)
            order = order[scores > parameters.threshold]
            cover = found.pred_masks[0].sigmoid()[order]
        masks = state.frame.masks(cover, 0.5)
        label = parameters.prompt.strip()
        return Result(
            masks=masks,
            labels=(label,) * len(masks) if label else (),
            info={"scores": scores[: len(masks)].tolist()} if len(masks) else {"scores": [], "unchanged": True},
        )

    def _prompts(self, frame: Frame, parameters: Sam3Parameters) -> dict[str, Tensor]:
        import torch

        words = parameters.prompt.strip()
        limit = self._network.config.text_config.max_position_embeddings
        # "visual" is what the network was trained with where boxes alone say what is meant
        tokens = self._tokenizer([words or "visual"], return_tensors="pt", padding="max_length", max_length=limit)
        if (count := tokens["input_ids"].shape[1]) > limit:
            raise InputError(f"The prompt has {count} tokens, and sam3 reads {limit}", "Name it in fewer words")
        prompts = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        if parameters.boxes:
            sides = torch.tensor([frame.width, frame.height, frame.width, frame.height])
            left, top, right, bottom = (torch.tensor(parameters.boxes, dtype=torch.float32) / sides).T
            boxes = torch.stack([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)], 1) / 2
            prompts["input_boxes"] = boxes[None].to(self._network.dtype)
            prompts["input_boxes_labels"] = torch.ones(1, len(boxes), dtype=torch.long)
        return {name: prompt.to(self._network.device) for name, prompt in prompts.items()}
