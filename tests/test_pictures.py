import functools
import io
import signal
import stat
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from conftest import ROOT, photograph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL.PngImagePlugin import PngInfo

from iopaint_core import (
    PictureReadError,
    PictureTooLargeError,
    PictureWriteError,
    read_mask,
    read_picture,
    write_picture,
)

PHOTO = ROOT / "examples" / "astronaut.jpg"


def sample(mode, size=(60, 40)):
    image = PIL.Image.fromarray(photograph(size[1], size[0]))
    if mode == "I;16":
        return PIL.Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[1], size[0]) * 27)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(PIL.Image.fromarray(photograph(size[1], size[0], seed=1)[..., 0]))
        return image
    return image.convert(mode)


def repair(picture):
    """A model's work on one corner."""
    rgb = picture.rgb.copy()
    rgb[:8, :8] = (255, 0, 0)
    return picture.repaired(rgb)


LOSSLESS = [
    ("RGB", ".png"), ("RGBA", ".png"), ("L", ".png"), ("LA", ".png"), ("I;16", ".png"), ("P", ".png"),
    ("1", ".png"),
    ("RGB", ".tif"), ("RGBA", ".tif"), ("L", ".tif"), ("LA", ".tif"), ("I;16", ".tif"), ("CMYK", ".tif"),
    ("P", ".tif"),
    ("1", ".tif"), ("RGB", ".bmp"), ("L", ".bmp"), ("RGB", ".webp"), ("RGBA", ".webp"),
]  # fmt: skip
KEPT_MODE = {"P": "RGB", "1": "L"}


@pytest.mark.parametrize(("mode", "suffix"), LOSSLESS)
def test_what_a_model_did_not_change_keeps_the_samples_of_the_file(tmp_path, mode, suffix):
    original = sample(mode)
    original.save(tmp_path / f"in{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    picture = read_picture(tmp_path / f"in{suffix}")
    assert picture.rgb.shape == (40, 60, 3)
    write_picture(repair(picture), tmp_path / f"out{suffix}", quality=100)
    with PIL.Image.open(tmp_path / f"out{suffix}") as result:
        kept = KEPT_MODE.get(mode, mode)
        assert result.mode == kept
        before, after = np.asarray(original.convert(kept)), np.asarray(result)
        if "A" in kept:
            assert np.array_equal(before[..., -1], after[..., -1])
        before, after = before.copy(), after.copy()
        assert not np.array_equal(before[:8, :8], after[:8, :8])
        before[:8, :8] = after[:8, :8] = 0
        if suffix == ".webp" and mode == "RGBA":  # WebP drops colours that are fully transparent
            before[before[..., 3] == 0] = after[before[..., 3] == 0]
        assert np.array_equal(before, after)


def test_16_bit_greys_reach_a_model_at_full_range(tmp_path):
    PIL.Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png").rgb[0, :, 0].tolist() == [0, 1, 128, 255]


def deep_colours(channels=3, height=40, width=60):
    return np.random.default_rng(0).integers(0, 65536, (height, width, channels), dtype=np.uint16)


class TestDeepColours:
    """16 bits a channel; OpenCV, which orders channels BGR(A), makes and reads the files here."""

    @pytest.mark.parametrize("channels", [3, 4])
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_they_stay_outside_what_a_model_changed(self, tmp_path, channels, suffix):
        original = deep_colours(channels)
        cv2.imwrite(str(tmp_path / f"in{suffix}"), original)
        picture = read_picture(tmp_path / f"in{suffix}")
        assert np.abs(picture.rgb.astype(int) - original[..., 2::-1] / 257).max() <= 1
        write_picture(repair(picture), tmp_path / "out.png")
        result = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)
        assert result.dtype == np.uint16
        assert (result[:8, :8, :3] == (0, 0, 65535)).all()
        assert np.array_equal(result[..., 3:], original[..., 3:])
        result[:8, :8] = original[:8, :8] = 0
        assert np.array_equal(result, original)

    def test_metadata_stays_beside_them(self, tmp_path):
        cv2.imwrite(str(tmp_path / "in.png"), deep_colours())
        described = replace(
            read_picture(tmp_path / "in.png"),
            metadata={"icc_profile": profile(), "dpi": (300, 300), "text": {"parameters": "steps: 20"}},
        )
        write_picture(described, tmp_path / "described.png")
        write_picture(repair(read_picture(tmp_path / "described.png")), tmp_path / "out.png")
        with PIL.Image.open(tmp_path / "out.png") as result:
            result.load()
            assert result.info["icc_profile"] == profile()
            assert round(result.info["dpi"][0]) == 300
            assert result.text["parameters"] == "steps: 20"

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_they_are_turned_upright(self, tmp_path, orientation):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        cv2.imwrite(str(tmp_path / "plain.png"), deep_colours())
        plain = read_picture(tmp_path / "plain.png")
        write_picture(replace(plain, metadata={"exif": exif.tobytes()}), tmp_path / "turned.png")
        turned = read_picture(tmp_path / "turned.png")
        assert np.abs(turned.deep / 257 - turned.rgb).max() <= 1
        write_picture(turned, tmp_path / "out.png")
        assert np.array_equal(read_picture(tmp_path / "out.png").deep, turned.deep)

    def test_a_tiff_that_would_lose_them_is_refused(self, tmp_path):
        cv2.imwrite(str(tmp_path / "in.tif"), deep_colours())
        with pytest.raises(PictureWriteError, match=r"8 bits a channel of the 16.*Write a \.png"):
            write_picture(read_picture(tmp_path / "in.tif"), tmp_path / "out.tif")

    def test_a_format_of_8_bits_takes_8(self, tmp_path):
        cv2.imwrite(str(tmp_path / "in.png"), deep_colours())
        picture = read_picture(tmp_path / "in.png")
        write_picture(picture, tmp_path / "out.bmp")
        assert np.array_equal(read_picture(tmp_path / "out.bmp").rgb, picture.rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_picture_is_read_and_written_upright(tmp_path, orientation, suffix):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    PIL.Image.fromarray(pixels).save(tmp_path / f"in{suffix}", exif=exif, quality=100)
    picture = read_picture(tmp_path / f"in{suffix}")
    height, width = (32, 16) if orientation >= 5 else (16, 32)
    assert picture.rgb.shape == (height, width, 3)
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    assert picture.rgb[-1 if bottom else 0, -1 if right else 0].min() > 200
    write_picture(picture, tmp_path / f"out{suffix}")
    with PIL.Image.open(tmp_path / f"out{suffix}") as result:
        assert result.size == (width, height)
        assert result.getexif().get(0x0112, 1) == 1
        assert np.abs(np.asarray(result).astype(int) - picture.rgb).max() < 60


@functools.cache  # a profile has the second in it at which it was made
def profile(name="sRGB"):
    return PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile(name)).tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_profile_and_metadata_are_kept(tmp_path, suffix):
    exif = PIL.Image.Exif()
    exif[0x010E], exif[0x8298] = "a cup of coffee", "its photographer"
    text = PngInfo()
    text.add_text("parameters", "steps: 20")
    extra = {"pnginfo": text} if suffix == ".png" else {"comment": b"hello"} if suffix == ".jpg" else {}
    sample("RGB").save(tmp_path / f"in{suffix}", exif=exif, icc_profile=profile(), dpi=(300, 300), **extra)
    write_picture(repair(read_picture(tmp_path / f"in{suffix}")), tmp_path / f"out{suffix}")
    with PIL.Image.open(tmp_path / f"out{suffix}") as result:
        assert result.info["icc_profile"] == profile()
        assert result.getexif()[0x010E] == "a cup of coffee"
        assert result.getexif()[0x8298] == "its photographer"
        if suffix != ".webp":
            assert round(result.info["dpi"][0]) == 300
        if suffix == ".png":
            assert result.text["parameters"] == "steps: 20"
        if suffix == ".jpg":
            assert result.info["comment"] == b"hello"


def test_the_embedded_thumbnail_does_not_show_what_was_removed(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x010E] = "kept"
    thumbnail = io.BytesIO()
    sample("RGB", (16, 16)).save(thumbnail, "JPEG")
    head = exif.tobytes()
    body = bytearray(head + thumbnail.getvalue())
    sample("RGB").save(tmp_path / "in.jpg", exif=bytes(body))
    write_picture(repair(read_picture(tmp_path / "in.jpg")), tmp_path / "out.jpg")
    with PIL.Image.open(tmp_path / "out.jpg") as result:
        assert result.getexif()[0x010E] == "kept"
        assert thumbnail.getvalue() not in result.info["exif"]


def test_jpeg_stays_jpeg_at_the_quality_asked_for(tmp_path):
    picture = read_picture(PHOTO)
    for quality in (50, 95):
        write_picture(picture, tmp_path / f"{quality}.jpg", quality=quality)
    with PIL.Image.open(tmp_path / "50.jpg") as low, PIL.Image.open(tmp_path / "95.jpg") as high:
        reference = io.BytesIO()
        PIL.Image.fromarray(picture.rgb).save(reference, "JPEG", quality=50)
        assert low.format == high.format == "JPEG"
        assert low.quantization == PIL.Image.open(reference).quantization != high.quantization
    assert (tmp_path / "50.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_keeps_its_subsampling(tmp_path, subsampling):
    from PIL.JpegImagePlugin import get_sampling

    sample("RGB").save(tmp_path / "in.jpg", subsampling=subsampling)
    write_picture(read_picture(tmp_path / "in.jpg"), tmp_path / "out.jpg")
    with PIL.Image.open(tmp_path / "out.jpg") as result:
        assert get_sampling(result) == subsampling


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp"])
def test_cmyk_becomes_rgb_where_the_format_asks_for_it(tmp_path, suffix):
    sample("CMYK").save(tmp_path / "in.tif")
    write_picture(repair(read_picture(tmp_path / "in.tif")), tmp_path / f"out{suffix}", quality=100)
    with PIL.Image.open(tmp_path / f"out{suffix}") as result:
        assert result.mode == "RGB"
        assert result.getpixel((2, 2)) == (255, 0, 0)


def test_transparency_is_refused_where_it_would_be_lost(tmp_path):
    sample("RGBA").save(tmp_path / "in.png")
    with pytest.raises(PictureWriteError, match=r"can't hold the transparency.*\.png, \.webp or \.tif"):
        write_picture(read_picture(tmp_path / "in.png"), tmp_path / "out.jpg")
    assert not (tmp_path / "out.jpg").exists()


def test_transparency_that_hides_nothing_is_dropped(tmp_path):
    opaque = sample("RGB").convert("RGBA")
    opaque.save(tmp_path / "in.png")
    write_picture(read_picture(tmp_path / "in.png"), tmp_path / "out.jpg")
    with PIL.Image.open(tmp_path / "out.jpg") as result:
        assert result.mode == "RGB"


def test_a_palettes_transparent_colour_is_kept(tmp_path):
    palette = sample("P")
    palette.save(tmp_path / "in.png", transparency=palette.getpixel((30, 30)))
    picture = read_picture(tmp_path / "in.png")
    assert picture.samples.mode == "RGBA"
    assert picture.samples.getpixel((30, 30))[3] == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "CMYK"])
def test_a_result_of_another_size_replaces_the_picture(tmp_path, mode):
    sample(mode).save(tmp_path / "in.tif")
    picture = read_picture(tmp_path / "in.tif")
    larger = picture.repaired(picture.rgb.repeat(2, axis=0).repeat(2, axis=1))
    assert larger.samples.size == (120, 80)
    assert larger.samples.mode == ("RGBA" if mode == "RGBA" else "RGB")


def test_a_model_may_bring_its_own_transparency(tmp_path):
    sample("RGB").save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    cut = picture.repaired(np.dstack([picture.rgb, np.full((40, 60), 7, np.uint8)]))
    assert cut.samples.getpixel((0, 0))[3] == 7


class TestMasks:
    def test_brightness_counts_and_transparency_is_black(self, tmp_path):
        layer = np.zeros((2, 3, 4), np.uint8)
        layer[0, 0] = (255, 255, 255, 255)
        layer[0, 1] = (255, 255, 255, 0)
        PIL.Image.fromarray(layer).save(tmp_path / "mask.png")
        assert read_mask(tmp_path / "mask.png").tolist() == [[255, 0, 0], [0, 0, 0]]

    @pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "I;16"])
    def test_any_mode_will_do(self, tmp_path, mode):
        white = {"I;16": 65535, "RGB": (255, 255, 255)}.get(mode, 255)
        PIL.Image.new("L" if mode == "P" else mode, (3, 2), white).convert(mode).save(tmp_path / "mask.png")
        assert (read_mask(tmp_path / "mask.png") == 255).all()


class TestUnreadable:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(PictureReadError, match="There is no file"):
            read_picture(tmp_path / "photo.png")

    def test_a_text_file_named_png(self, tmp_path):
        (tmp_path / "photo.png").write_text("hello")
        with pytest.raises(PictureReadError, match=r"is no picture that can be read.*PNG"):
            read_picture(tmp_path / "photo.png")

    def test_a_folder(self, tmp_path):
        with pytest.raises(PictureReadError, match="can't be read"):
            read_picture(tmp_path)

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of damage before it raises
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
    @given(data=st.data())
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_truncated_or_damaged_file_is_an_error_or_a_picture(self, tmp_path, suffix, data):
        whole = io.BytesIO()
        PIL.Image.init()
        sample("RGB").save(whole, PIL.Image.EXTENSION[suffix])
        content = bytearray(whole.getvalue())
        length = data.draw(st.integers(0, len(content)))
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
            content[place] ^= data.draw(st.integers(1, 255))
        (tmp_path / f"photo{suffix}").write_bytes(content[:length])
        try:
            picture = read_picture(tmp_path / f"photo{suffix}", max_pixels=1_000_000)
        except PictureReadError as error:
            told = str(error)
        else:
            told = str(picture.source)
        assert f"photo{suffix}" in told

    def test_half_a_jpeg(self, tmp_path):
        (tmp_path / "half.jpg").write_bytes(PHOTO.read_bytes()[:30_000])
        with pytest.raises(PictureReadError, match=r"half\.jpg can't be read.*truncated"):
            read_picture(tmp_path / "half.jpg")

    @pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
    def test_an_animation_would_lose_its_other_pictures(self, tmp_path, suffix):
        frames = [sample("RGB"), sample("RGB").transpose(PIL.Image.Transpose.ROTATE_180)]
        frames[0].save(tmp_path / f"moving{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(PictureReadError, match="holds 2 pictures"):
            read_picture(tmp_path / f"moving{suffix}")

    def test_floating_point_samples(self, tmp_path):
        sample("F").save(tmp_path / "float.tif")
        with pytest.raises(PictureReadError, match="has F samples"):
            read_picture(tmp_path / "float.tif")

    def test_a_huge_picture_is_refused_before_it_is_decoded(self, tmp_path):
        huge_png(tmp_path / "huge.png")
        with pytest.raises(PictureTooLargeError):
            read_picture(tmp_path / "huge.png")

    def test_the_limit_is_the_callers(self, tmp_path):
        sample("RGB").save(tmp_path / "photo.png")
        with pytest.raises(PictureTooLargeError, match="60 x 40 pixels, over the limit of 2399"):
            read_picture(tmp_path / "photo.png", max_pixels=2399)
        assert read_picture(tmp_path / "photo.png", max_pixels=2400)


def huge_png(path):
    """A PNG that says it has 50,000 x 50,000 pixels, in a few bytes."""
    small = io.BytesIO()
    PIL.Image.new("L", (1, 1)).save(small, "PNG")
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    rest = small.getvalue()[33:]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + rest
    )


class TestWriting:
    def test_an_unknown_suffix_is_told_with_the_known_ones(self, tmp_path):
        with pytest.raises(PictureWriteError, match=r"no suffix of a known format.*\.png, \.jpg"):
            write_picture(read_picture(PHOTO), tmp_path / "out.gif")

    def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(self, tmp_path):
        (tmp_path / "out.webp").write_bytes(b"old")
        wide = read_picture(PHOTO).repaired(np.zeros((4, 20_000, 3), np.uint8))  # WebP ends at 16,383
        with pytest.raises(PictureWriteError, match=r"out\.webp could not be written"):
            write_picture(wide, tmp_path / "out.webp")
        assert (tmp_path / "out.webp").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["out.webp"]

    @pytest.mark.process
    def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file_whole(self, tmp_path):
        (tmp_path / "out.png").write_bytes(b"old")
        script = """if True:
            import os, signal, sys
            from pathlib import Path
            from iopaint_core.pictures import written_aside
            with written_aside(Path(sys.argv[1])) as file:
                file.write(b"half of the new")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        """
        killed = subprocess.run([sys.executable, "-c", script, tmp_path / "out.png"], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert (tmp_path / "out.png").read_bytes() == b"old"
        write_picture(read_picture(PHOTO), tmp_path / "out.png")
        assert read_picture(tmp_path / "out.png").rgb.shape == (512, 512, 3)

    def test_a_new_file_has_the_usual_mode_and_a_replaced_one_keeps_its_own(self, tmp_path):
        (tmp_path / "usual").touch()
        write_picture(read_picture(PHOTO), tmp_path / "new.png")
        assert (tmp_path / "new.png").stat().st_mode == (tmp_path / "usual").stat().st_mode
        (tmp_path / "new.png").chmod(0o604)
        write_picture(read_picture(PHOTO), tmp_path / "new.png")
        assert stat.S_IMODE((tmp_path / "new.png").stat().st_mode) == 0o604

    def test_a_name_of_the_greatest_length_can_be_written(self, tmp_path):
        write_picture(read_picture(PHOTO), tmp_path / ("n" * 251 + ".png"))

    def test_a_symbolic_link_goes_on_leading_to_its_file(self, tmp_path):
        (tmp_path / "real.png").write_bytes(b"old")
        (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
        write_picture(read_picture(PHOTO), tmp_path / "link.png")
        assert (tmp_path / "link.png").is_symlink()
        assert read_picture(tmp_path / "real.png")
