"""Images: three formats by their content, a limit of pixels, and one line for everything else."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from efface.errors import BadInput
from efface.models.images import folder_latents
from efface.models.model import Model
from efface.util import image_file


def picture(kind: str, size: tuple[int, int] = (20, 10)) -> bytes:
    found = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(found, kind)
    return found.getvalue()


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """Return a PNG of black pixels whose header states any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", image_file.FORMATS)
def test_a_format_is_told_by_its_content(kind: str, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(picture(kind))
    found = image_file.read(path)
    assert found.size == (20, 10)
    assert found.mode == "RGB"


def test_only_the_formats_asked_for_are_read(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(picture("JPEG"))
    with pytest.raises(BadInput, match="its content is not PNG"):
        image_file.read(tmp_path / "a.png", ("PNG",))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
ODD = {
    "gif": (picture("GIF"), "PNG or JPEG or WEBP"),
    "bmp": (picture("BMP"), "PNG or JPEG or WEBP"),
    "tiff": (picture("TIFF"), "PNG or JPEG or WEBP"),
    "eps": (EPS, "PNG or JPEG or WEBP"),
    "pdf": (b"%PDF-1.4\n", "PNG or JPEG or WEBP"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "PNG or JPEG or WEBP"),
    "nothing": (b"", "PNG or JPEG or WEBP"),
    "text": (b"hello", "PNG or JPEG or WEBP"),
    "a bomb": (png(20_000, 20_000, bytes(20_001)), "at most 67108864 pixels"),
    "a larger bomb": (png(2**31 - 1, 2**31 - 1), "at most 67108864 pixels"),
    "one row too many": (png(8192, 8193), "at most 67108864 pixels .* has 8192 × 8193"),
    "no width": (png(0, 10), "cannot read the image"),
    "half a png": (picture("PNG")[:200], "cannot read the image"),
    "half a jpeg": (picture("JPEG")[:300], "cannot read the image"),
    "half a webp": (picture("WEBP")[:100], "cannot read the image"),
    "a header alone": (png(10, 10)[:33], "cannot read the image"),
    "no pixels": (png(100, 100), "cannot read the image"),
}


@pytest.mark.parametrize("name", ODD)
def test_anything_else_is_refused_in_one_line(name: str, tmp_path: Path):
    content, says = ODD[name]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says) as caught:
        image_file.read(path)
    assert "\n" not in str(caught.value)


def test_the_largest_picture_is_read(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(8192, 8192, bytes(8193 * 8192)))
    assert image_file.read(tmp_path / "a.png").size == (8192, 8192)


def test_a_folder_with_images_that_are_not_read_is_refused(tiny: Model, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    (tmp_path / "notes.txt").write_text("not an image")
    assert folder_latents(tiny, tmp_path).shape == (1, 4, 8, 8)
    (tmp_path / "b.bmp").write_bytes(picture("BMP"))
    with pytest.raises(BadInput, match=r"b\.bmp is not read: convert it"):
        folder_latents(tiny, tmp_path)
