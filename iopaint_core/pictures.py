"""Picture files: read what a model needs, keep all the rest, write it back.

A repaired picture is put together in the samples of its file: where the model changed nothing, the file's own
16-bit, CMYK or grey values stay; only the repaired pixels are converted.
"""

from __future__ import annotations

import io
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from iopaint_core import deepcolor
from iopaint_core.errors import PictureReadError, PictureTooLargeError, PictureWriteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import PIL.Image
    from PIL.ImageCms import ImageCmsProfile
    from PIL.ImageFile import ImageFile

    from iopaint_core.deepcolor import Deep
    from iopaint_core.imaging import Image, Mask

FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
"""Suffixes of the files that can be read and written, and Pillow's names of their formats."""
MAX_PIXELS = 2 * 89_478_485
"""Pictures with more pixels are refused unless asked for: the limit from which Pillow suspects an attack."""
QUALITY = 95
"""Of JPEG and lossy WebP files, 1 to 100."""

_DEEP = "I;16"
_MODES = {  # what Pillow opens a file as, and the nearest mode that a repaired picture can have
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA", "RGBa": "RGBA",
    "YCbCr": "RGB", "P": "RGB", "PA": "RGBA", "CMYK": "CMYK",
    _DEEP: _DEEP, "I;16B": _DEEP, "I;16L": _DEEP, "I;16N": _DEEP,
}  # fmt: skip
_MODES_OF_FORMAT = {
    "PNG": {"L", "LA", "RGB", "RGBA", _DEEP},
    "JPEG": {"L", "RGB", "CMYK"},
    "WEBP": {"RGB", "RGBA"},
    "TIFF": {"L", "LA", "RGB", "RGBA", "CMYK", _DEEP},
    "BMP": {"L", "RGB"},
}
_OPTIONS_OF_FORMAT = {
    "PNG": ("icc_profile", "exif", "dpi"),
    "JPEG": ("icc_profile", "exif", "dpi", "xmp", "comment", "progressive", "subsampling"),
    "WEBP": ("icc_profile", "exif", "xmp"),
    "TIFF": ("icc_profile", "exif", "dpi", "compression"),
    "BMP": ("dpi",),
}
_TIFF_DESCRIPTIVE = {270, 271, 272, 285, 305, 306, 315, 316, 33432, 34665, 34853}
"""Description, Make, Model, PageName, Software, DateTime, Artist, HostComputer, Copyright, Exif and GPS."""
_TIFF_LOSSLESS = {"raw", "packbits", "lzma", "zstd", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate"}


@dataclass(frozen=True)
class Picture:
    """A decoded picture file, upright."""

    samples: PIL.Image.Image
    """In the file's own mode: L, LA, RGB, RGBA, CMYK or I;16; a palette is expanded."""
    source: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """ICC profile, EXIF, XMP, resolution, text and compression, as Pillow's `save` takes them."""
    deep: Deep | None = None
    """The same in 16 bits a channel, where the file has colours of that depth; `samples` then holds 8 of them."""

    @cached_property
    def rgb(self) -> Image:
        """What a model sees: RGB `uint8`, `(H, W, 3)`."""
        import numpy as np

        return np.array(self._to_rgb(self.samples))

    def repaired(self, rgb: Image, *, in_colour: bool = False) -> Picture:
        """This picture with what a model returned, `(H, W, 3)` or, with transparency, `(H, W, 4)`.

        Pixels that equal `self.rgb` keep the file's samples; transparency is kept unless the model returns
        its own. A result of another size replaces the picture, its transparency resized; so does any result of a
        grey picture that is to be `in_colour`.
        """
        import numpy as np
        import PIL.Image

        result = PIL.Image.fromarray(rgb)
        if result.mode == "RGBA":
            return self._with_samples(result)
        if result.size != self.samples.size or (in_colour and self.samples.mode in {"L", "LA", _DEEP}):
            if "A" in self.samples.getbands():
                result.putalpha(self.samples.getchannel("A").resize(result.size, PIL.Image.Resampling.LANCZOS))
            return self._with_samples(result)
        changed = (rgb != self.rgb).any(axis=2)
        samples = self.samples.copy()
        if samples.mode == _DEEP:
            grey = np.asarray(samples).copy()
            grey[changed] = np.asarray(result.convert("L"))[changed].astype("uint16") * 257
            samples = PIL.Image.fromarray(grey)
        else:
            converted = self._from_rgb(result)
            if "A" in samples.getbands():
                converted.putalpha(samples.getchannel("A"))
            samples.paste(converted, mask=PIL.Image.fromarray(changed))
        if self.deep is None:
            return replace(self, samples=samples)
        deep = self.deep.copy()
        deep[changed, :3] = rgb[changed].astype("uint16") * 257
        return replace(self, samples=samples, deep=deep)

    def _with_samples(self, samples: PIL.Image.Image) -> Picture:
        metadata = dict(self.metadata)
        if self.samples.mode not in ("RGB", "RGBA"):
            metadata.pop("icc_profile", None)  # it describes grey or CMYK samples
        return replace(self, samples=samples, metadata=metadata, deep=None)

    def _to_rgb(self, samples: PIL.Image.Image) -> PIL.Image.Image:
        import numpy as np
        import PIL.Image

        if samples.mode == _DEEP:
            samples = PIL.Image.fromarray((np.asarray(samples) // 257).astype("uint8"))
        profile = self._cmyk_profile()
        if profile is None:
            return samples.convert("RGB")
        return _convert_profile(samples, profile, _srgb(), "RGB")

    def _from_rgb(self, result: PIL.Image.Image) -> PIL.Image.Image:
        profile = self._cmyk_profile()
        if profile is None:
            return result.convert(self.samples.mode)
        return _convert_profile(result, _srgb(), profile, "CMYK")

    def _cmyk_profile(self) -> ImageCmsProfile | None:
        if self.samples.mode != "CMYK" or not self.metadata.get("icc_profile"):
            return None
        from PIL import ImageCms

        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(self.metadata["icc_profile"]))
        except OSError:
            return None  # damaged, or of no known version: convert without it, as viewers do
        return profile if profile.profile.xcolor_space.strip() == "CMYK" else None


def read_picture(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF or BMP file, turned upright as its EXIF orientation says.

    Raises `PictureTooLargeError` before decoding more than `max_pixels` (Pillow's own `MAX_IMAGE_PIXELS` holds
    too), and `PictureReadError` for a file that is missing, damaged, animated, or no picture.
    """
    from PIL import ImageOps

    path = Path(path)
    with _opened(path, max_pixels) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a camera's MPO holds previews beside the picture
            raise PictureReadError(f"{path} holds {frames} pictures", "Split it: all but one would be lost")
        if image.mode not in _MODES:
            raise PictureReadError(f"{path} has {image.mode} samples", "Convert it to 8 or 16 bits a channel")
        deep = _read_deep(image, path) if image.mode != _DEEP and _is_deep(image) else None
        ImageOps.exif_transpose(image, in_place=True)
        mode = _MODES[image.mode]
        if "transparency" in image.info and mode != _DEEP:
            mode = "LA" if image.mode == "L" else "RGBA"
        if deep is not None:
            mode = "RGBA" if deep.shape[2] == 4 else "RGB"
        samples = image.convert(mode)
        samples.info.clear()
        return Picture(samples, path, _metadata(image), deep)


def read_mask(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Mask:
    """Read a mask as `uint8` `(H, W)`: brightness, with what is transparent as 0. Raises as `read_picture`."""
    import numpy as np
    import PIL.Image

    samples = read_picture(path, max_pixels=max_pixels).samples
    if "A" in samples.getbands():
        layer = samples.convert("RGBA")
        samples = PIL.Image.alpha_composite(PIL.Image.new("RGBA", layer.size, "black"), layer)
    if samples.mode == _DEEP:
        return (np.asarray(samples) // 257).astype("uint8")
    return np.array(samples.convert("L"))


def write_picture(picture: Picture, path: str | Path, *, quality: int = QUALITY) -> None:
    """Write a picture in the format that the suffix of `path` names, with its metadata.

    The file is written aside and renamed, so that `path` holds the old or the new picture, whole, at any time.
    Raises `PictureWriteError` for an unknown suffix, for transparency that the format can't hold, and for
    what the system refuses.
    """
    path = Path(path)
    format_name = FORMATS.get(path.suffix.lower())
    if format_name is None:
        raise PictureWriteError(f"{path} has no suffix of a known format", f"Use one of {', '.join(FORMATS)}")
    samples = _fit_format(picture, format_name, path)
    options = _save_options(format_name, picture.metadata, quality)
    if samples.mode.rstrip("A") != picture.samples.mode.rstrip("A"):
        options.pop("icc_profile", None)  # it describes samples of the old mode
    with written_aside(path) as file:
        if picture.deep is None or format_name != "PNG":
            samples.save(file, format_name, **options)
        else:
            described = io.BytesIO()
            samples.crop((0, 0, 1, 1)).save(described, format_name, **options)
            deepcolor.write_png(file, picture.deep, described.getvalue())


def copy_picture(source: Path, path: Path) -> None:
    """Copy a picture file byte for byte, as safely as `write_picture` writes."""
    with source.open("rb") as original, written_aside(path) as file:
        shutil.copyfileobj(original, file)


def holds_transparency(path: Path) -> bool:
    """Return whether the format that the suffix of `path` names has an alpha channel."""
    return "RGBA" in _MODES_OF_FORMAT.get(FORMATS.get(path.suffix.lower(), ""), ())


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when the block ends well, and is removed otherwise."""
    target = Path(os.path.realpath(path))
    aside = target.with_name(f".iopaint-{os.urandom(8).hex()}.part")
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, aside)
        aside.replace(target)
    except Exception as error:
        raise PictureWriteError(
            f"{path} could not be written: {error}",
            "Check that the folder can be written to and the disk has room",
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[ImageFile]:
    import PIL.Image

    # Pillow knows what it has imported; asked for a format beyond, it imports all of its 40 plugins.
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    try:
        with PIL.Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            if image.width * image.height > max_pixels:
                raise PictureTooLargeError(
                    f"{path} has {image.width} x {image.height} pixels, over the limit of {max_pixels}",
                    "Make it smaller, or raise the limit if you trust its source",
                )
            yield image
    except PIL.Image.DecompressionBombError as error:
        raise PictureTooLargeError(
            f"{path}: {error}", "Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust its source"
        ) from error
    except FileNotFoundError as error:
        raise PictureReadError(f"There is no file {path}", "Check its name") from error
    except PIL.UnidentifiedImageError as error:
        raise PictureReadError(
            f"{path} is no picture that can be read",
            f"Give one of {', '.join(sorted(set(FORMATS.values())))}",
        ) from error
    except PictureReadError:
        raise
    except Exception as error:
        raise PictureReadError(f"{path} can't be read: {error}", "Get a whole copy of the file") from error


def _read_deep(image: ImageFile, path: Path) -> Deep:
    samples = deepcolor.read(path, image.getexif().get(0x0112, 1))
    if samples is None:
        raise PictureReadError(f"{path} has 16-bit samples that can't be read", "Convert it to a 16-bit RGB PNG")
    return samples


def _is_deep(image: ImageFile) -> bool:
    """Whether Pillow decodes channels of 16 bits to 8, which only the raw mode of its tiles tells."""
    modes = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile if tile.args]
    return any(isinstance(mode, str) and mode.endswith((";16B", ";16L", ";16N")) for mode in modes)


def _metadata(image: ImageFile) -> dict[str, Any]:
    info = image.info
    metadata = {key: info.get(key) for key in ("icc_profile", "xmp", "dpi", "comment", "progressive")}
    metadata["text"] = {key: info.get(key, text) for key, text in getattr(image, "text", {}).items()}
    exif = image.getexif()
    if image.format == "TIFF":
        metadata["compression"] = info.get("compression") if info.get("compression") in _TIFF_LOSSLESS else None
        for tag in set(exif) - _TIFF_DESCRIPTIVE:
            del exif[tag]  # says where the old file's samples stood
    # Serialised anew, EXIF lacks its thumbnail, which would show what was removed.
    metadata["exif"] = exif.tobytes() if exif else None
    if image.format in ("JPEG", "MPO"):
        from PIL.JpegImagePlugin import get_sampling

        metadata["subsampling"] = get_sampling(image)
    return {key: value for key, value in metadata.items() if value or key == "subsampling"}


def _fit_format(picture: Picture, format_name: str, path: Path) -> PIL.Image.Image:
    """The samples in a mode that the format holds."""
    samples, modes = picture.samples, _MODES_OF_FORMAT[format_name]
    if picture.deep is not None and format_name == "TIFF":
        raise PictureWriteError(
            f"{path} would hold 8 bits a channel of the 16 that {picture.source or 'the picture'} has",
            "Write a .png file, which keeps them",
        )
    if samples.mode in modes:
        return samples
    if "A" in samples.getbands() and not modes & {"LA", "RGBA"}:
        if samples.getchannel("A").getextrema() != (255, 255):
            raise PictureWriteError(
                f"{path} can't hold the transparency of {picture.source or 'the picture'}",
                "Write a .png, .webp or .tif file",
            )
        return samples.convert(samples.mode.rstrip("A"))
    if samples.mode == _DEEP:
        return picture._to_rgb(samples).convert("L" if "L" in modes else "RGB")
    if samples.mode == "CMYK":
        return picture._to_rgb(samples)
    return samples.convert("RGBA" if "A" in samples.getbands() else "RGB")


def _save_options(format_name: str, metadata: dict[str, Any], quality: int) -> dict[str, Any]:
    options = {key: metadata[key] for key in _OPTIONS_OF_FORMAT[format_name] if key in metadata}
    if format_name in ("JPEG", "WEBP"):
        options["quality"] = quality
    if format_name == "WEBP":
        options["lossless"] = quality == 100
    if format_name == "PNG" and "text" in metadata:
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        for key, value in metadata["text"].items():
            options["pnginfo"].add_itxt(key, value)
    return options


def _convert_profile(
    image: PIL.Image.Image, source: ImageCmsProfile, target: ImageCmsProfile, mode: str
) -> PIL.Image.Image:
    from PIL import ImageCms

    converted = ImageCms.profileToProfile(image, source, target, outputMode=mode)
    if converted is None:
        raise PictureReadError("The colour profile could not be used", "Convert the picture to RGB")
    return converted


def _srgb() -> ImageCmsProfile:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
