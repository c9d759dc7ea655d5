"""Pictures as people have them: every format, colour profiles, sizes, and what hides in them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from ultrapixel_jax.data import images

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
PRIMARIES = {  # x, y of red, green and blue, and gamma
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), 563 / 256),
    "Display P3, gamma 2.2": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), 2.2),
    "ProPhoto-like, D65": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), 1.8),
}
D65, D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])


def xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def matrix(primaries) -> np.ndarray:
    """Linear RGB to XYZ with the white at D65."""
    columns = np.stack([xyz(*p) for p in primaries], 1)
    return columns * np.linalg.solve(columns, xyz(*D65))


BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
ADAPT = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ xyz(*D65))) @ BRADFORD


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2, written by hand."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"hand\0" + bytes(78), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", 0, b"none", 0x02400000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(D50) + bytes(48)
    out = head + table + body
    return struct.pack(">I", len(out)) + out[4:]


def fixed(values) -> bytes:
    return struct.pack(">3i", *(round(float(v) * 65536) for v in values))


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(*primaries, gamma: float) -> bytes:
    adapted = ADAPT @ matrix(primaries)
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(D50)}
    tags |= {
        b"%bXYZ" % c: b"XYZ " + bytes(4) + fixed(adapted[:, i]) for i, c in enumerate((b"r", b"g", b"b"))
    }
    return profile(b"RGB ", tags | {b"%bTRC" % c: curve(gamma) for c in (b"r", b"g", b"b")})


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear sRGB to grey levels, by IEC 61966-2-1."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("name", PRIMARIES)
@pytest.mark.parametrize("alpha", [False, True])
def test_rgb_profiles_are_obeyed(name: str, alpha: bool) -> None:
    *primaries, gamma = PRIMARIES[name]
    rows = np.concatenate([PIXELS, np.full((8, 50, 3), 0, np.uint8), np.full((8, 50, 3), 255, np.uint8)])
    picture = Image.fromarray(np.concatenate([rows, np.full_like(rows[..., :1], 255)], -1) if alpha else rows)
    data = saved(picture, "PNG", icc_profile=rgb_profile(*primaries, gamma=gamma))
    srgb = matrix([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)])
    linear = (rows / 255) ** gamma @ matrix(primaries).T @ np.linalg.inv(srgb).T
    inside = ((linear > 0.001) & (linear < 0.999)).all(-1) | (rows == 255).all(-1) | (rows == 0).all(-1)
    expected, got = to_srgb(linear), images.pixels(images.decode(data)).astype(np.float64)
    assert np.abs(got - expected)[inside].max() <= 1.0
    assert np.abs(rows - expected)[inside].max() > 5, "the profile changes something"


def test_grey_profiles_srgb_and_broken_ones() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey_profile = profile(b"GRAY", {b"wtpt": b"XYZ " + bytes(4) + fixed(D50), b"kTRC": curve(1.0)})
    got = images.pixels(images.decode(saved(Image.fromarray(grey), "PNG", icc_profile=grey_profile)))
    assert np.abs(got[..., 1] - to_srgb(grey / 255)).max() <= 1.0

    picture = Image.fromarray(PIXELS)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (srgb, b"no profile", srgb[:200], grey_profile, b""):
        decoded = images.read(saved(picture, "PNG", icc_profile=icc))
        assert np.array_equal(images.pixels(decoded.image), PIXELS)
        assert bool(decoded.notes) == (icc not in (srgb, b""))


def test_cmyk_with_a_profile_and_without() -> None:
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    plain = images.decode(saved(cmyk, "TIFF"))
    assert np.array_equal(images.pixels(plain), np.asarray(cmyk.convert("RGB")))
    # A table of 2 points per ink, each to Lab by hand: ink takes lightness away, and no ink is paper's white.
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(16, 4)
    lab = np.stack([255 * np.prod(1 - 0.5 * inks, 1), np.full(16, 128), np.full(16, 128)], 1).round()
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + fixed((1, 0, 0)) + fixed((0, 1, 0)) + fixed((0, 0, 1))
    lut += bytes(range(256)) * 4 + lab.astype(np.uint8).tobytes() + bytes(range(256)) * 3
    head = profile(b"CMYK", {b"wtpt": b"XYZ " + bytes(4) + fixed(D50), b"A2B0": lut, b"A2B1": lut})
    icc = head[:12] + b"prtr" + head[16:20] + b"Lab " + head[24:]
    white = images.pixels(images.decode(saved(Image.new("CMYK", (4, 4)), "TIFF", icc_profile=icc)))
    cyan = images.pixels(
        images.decode(saved(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF", icc_profile=icc))
    )
    assert white.min() >= 254
    assert np.ptp(cyan) <= 2, "this ink is grey, not cyan"
    assert 100 < cyan.mean() < 200


FORMATS = {
    "bmp": "BMP", "gif": "GIF", "tiff": "TIFF", "avif": "AVIF", "jp2": "JPEG2000", "ppm": "PPM", "tga": "TGA",
    "pcx": "PCX", "ico": "ICO", "qoi": "QOI", "sgi": "SGI", "dds": "DDS", "jfif": "JPEG", "jpe": "JPEG",
}  # fmt: skip


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_pillow_reads_is_read_and_stored_without_loss(suffix: str) -> None:
    picture = Image.fromarray(PIXELS[:32, :32])
    kind = FORMATS[suffix]
    data = saved(picture.convert("P") if kind == "GIF" else picture, kind)
    assert f".{suffix}" in images.SUFFIXES
    decoded = images.read(data)
    stored = decoded.encoded(data)
    assert (stored == data) == (kind == "JPEG")
    assert np.array_equal(images.pixels(images.decode(stored)), images.pixels(decoded.image))
    if kind not in ("GIF", "AVIF", "JPEG", "JPEG2000"):  # those that are exact themselves
        assert np.array_equal(images.pixels(decoded.image), PIXELS[:32, :32])


def test_a_converted_picture_is_not_converted_again() -> None:
    *primaries, gamma = PRIMARIES["Adobe RGB"]
    icc = rgb_profile(*primaries, gamma=gamma)
    data = saved(Image.fromarray(PIXELS), "TIFF", icc_profile=icc)
    decoded = images.read(data)
    assert np.array_equal(images.pixels(images.decode(decoded.encoded(data))), images.pixels(decoded.image))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_and_it_is_said(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = images.read(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert images.pixels(decoded.image)[5, 5].tolist() == [255, 0, 0]
    assert any("3 pictures" in note for note in decoded.notes)


@pytest.mark.parametrize("zipped", [False, True])
def test_large_texts_in_a_png_are_nothing(zipped: bool) -> None:
    texts = PngImagePlugin.PngInfo()
    for key in ("workflow", "prompt"):
        texts.add_text(key, '{"nodes": ' + "[1, 2]," * 400_000 + "}", zip=zipped)
        texts.add_itxt(key, "ж" * 1_500_000, zip=zipped)
    data = saved(Image.fromarray(PIXELS), "PNG", pnginfo=texts)
    assert np.array_equal(images.pixels(images.decode(data)), PIXELS)


def test_a_turned_png_is_upright_though_its_texts_are_dropped() -> None:
    xmp = '<x xmlns:tiff="t"><d tiff:Orientation="6"/></x>'
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", xmp)
    assert images.decode(saved(Image.fromarray(PIXELS), "PNG", pnginfo=texts)).size == (40, 50)


def flat_png(width: int, height: int, rows: int | None = None) -> bytes:
    """A white picture of one bit per pixel, or the first `rows` of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    line = b"\0" + b"\xff" * ((width + 7) // 8)
    data = zlib.compress(line * (height if rows is None else rows), 1)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_size_has_a_limit_of_its_own_and_pillows_is_none() -> None:
    large = flat_png(14_000, 13_000, rows=1)  # 182 megapixels; Pillow refuses 178
    with pytest.raises(images.BrokenImage, match=r"14000×13000 pixels, more than the 181 megapixels"):
        images.decode(large, 181)
    with pytest.raises(images.BrokenImage, match="megapixels"):
        images.decode(flat_png(2**16, 2**16, rows=1))  # a bomb, which is never unpacked
    assert Image.MAX_IMAGE_PIXELS is None
    with Image.open(io.BytesIO(large)) as opened:  # no warning, no error, and nothing decoded here
        assert opened.size == (14_000, 13_000)
    assert images.decode(flat_png(1200, 1000), 2).size == (1200, 1000)


def test_deep_grey_and_odd_modes() -> None:
    def through_tiff(array: np.ndarray) -> np.ndarray:
        return images.pixels(images.decode(saved(Image.fromarray(array), "TIFF")))

    assert through_tiff(np.full((4, 4), 0.5, np.float32)).max() == 127
    assert through_tiff(np.full((4, 4), 77.0, np.float32)).max() == 77
    assert through_tiff(np.full((4, 4), 40_000, np.int32)).max() == 156
    with pytest.raises(images.BrokenImage, match="of no known range"):
        through_tiff(np.full((4, 4), -3.0, np.float32))
    lab = Image.new("LAB", (4, 4), (128, 128, 128))
    grey = images.pixels(images.decode(saved(lab, "TIFF")))
    assert np.ptp(grey) <= 2 and 110 < grey.mean() < 128  # L* of 50 is sRGB's 119


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(80), "HEIC"),
        (b"\0\0\0\x20ftypisom" + bytes(80), "video"),
        (b"\xff\x0a" + bytes(90), "JPEG XL"),
        (b"%PDF-1.7 " + bytes(90), "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>" + bytes(60), "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + bytes(60), "PostScript"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "git lfs pull"),
        (bytes(5000), "no image"),
    ],
)
def test_what_is_none_is_called_what_it_is(data: bytes, words: str) -> None:
    with pytest.raises(images.BrokenImage, match=words):
        images.decode(data)
