import io

import datasets
import numpy as np
import pytest
import torch
from flat import file_images
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from modeling_mae.data.find.sources import Source
from modeling_mae.data.read.decode import Rules, decode, decode_present
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.read.reduced import ReducedJpeg, Reduction
from modeling_mae.data.serve.crops import CenterCrop, RandomResizedCrop
from modeling_mae.data.serve.images import FileImages, ImageSettings


SIZE = (16, 20)


def waves(height, width) -> Image.Image:
    """Waves of 125 and 188 pixels: no resize removes them, and a shift of one pixel changes values by up to 5."""
    y, x = np.mgrid[:height, :width]
    channels = [128 + 100 * np.sin(x / 20 + c) * np.cos(y / 30 - c) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def jpeg(image: Image.Image, orientation=None, **options) -> bytes:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), quality=95, exif=exif, **options)
    return buffer.getvalue()


def of_box(box):
    return Reduction(lambda height, width: torch.tensor([box]), SIZE)


def files(*images: bytes, **options) -> FileImages:
    cells = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in images]})
    return file_images(Source(cells, "image", None, "test"), SIZE, 3, **options)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 31, 40), 1),
        ((0, 0, 32, 39), 1),
        ((0, 0, 32, 40), 2),
        ((5, 7, 63, 300), 2),
        ((5, 7, 64, 80), 4),
        ((5, 7, 300, 159), 4),
        ((5, 7, 128, 160), 8),
        ((0, 0, 400, 400), 8),
    ],
)
def test_the_reduced_crop_is_at_least_as_large_as_the_target(box, expected):
    assert of_box(box)(400, 400) == expected


def test_the_crop_that_needs_most_pixels_decides():
    both = Reduction(lambda height, width: torch.tensor([[0, 0, 300, 300], [0, 0, 64, 80]]), SIZE)
    assert both(400, 400) == 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_reduced_crop_shows_what_the_whole_image_shows(orientation, channels):
    reductions = set()
    for height, width in ((203, 301), (304, 200)):  # multiples of 8 and others
        data = jpeg(waves(height, width), orientation)
        whole = decode(data, None, channels)
        for box in ((3, 2, 190, 170), (33, 20, 140, 96), (60, 71, 34, 42), (whole.shape[1] - 80, 5, 80, 100)):
            reduced, gone = decode_present(data, None, Rules(channels, reduction=of_box(box)))
            assert gone is None and reduced.shape == whole.shape
            reductions.add(reduced.reduction)
            assert min(reduced.picture.size) == -(-min(height, width) // reduced.reduction)
            expected = F.resized_crop(whole, *box, list(SIZE), InterpolationMode.BICUBIC, antialias=True)
            crop = reduced.crop(list(box), SIZE)
            assert crop.shape == (channels, *SIZE) and crop.dtype == torch.uint8
            difference = (crop.int() - expected.int()).abs()
            assert difference.max() <= 6 and difference.float().mean() < 1.5
    assert reductions == {2, 4, 8}


def test_what_is_not_reduced():
    image, box = waves(300, 400), (0, 0, 300, 400)
    png = io.BytesIO()
    image.save(png, "PNG")
    for data in (png.getvalue(), jpeg(image.convert("CMYK"))):
        assert torch.equal(decode_present(data, None, Rules(3, reduction=of_box(box)))[0], decode(data, None, 3))
    plain = jpeg(image)
    bands, _ = decode_present(plain, None, Rules(2, bands=[3, 1], reduction=of_box(box)))
    assert torch.equal(bands, decode(plain, None, 3)[[2, 0]])
    exact, _ = decode_present(plain, None, Rules(3, reduction=of_box((0, 0, 31, 400))))
    assert torch.equal(exact, decode(plain, None, 3))


def test_unusual_files():
    image, box = waves(300, 400), (0, 0, 300, 400)
    second = waves(30, 40)
    for data, channels in (
        (jpeg(image, format="MPO", save_all=True, append_images=[second]), 3),  # of phones
        (jpeg(image.convert("L")), 3),
        (jpeg(image.convert("L")), 1),
        (jpeg(image, progressive=True), 3),
        (jpeg(image, 6).replace(b"Exif\0\0", b"Exif\0\1"), 3),  # an orientation that cannot be read
    ):
        reduced, _ = decode_present(data, None, Rules(channels, reduction=of_box(box)))
        assert isinstance(reduced, ReducedJpeg) and reduced.shape == (channels, 300, 400)
        expected = F.resize(decode(data, None, channels), list(SIZE), InterpolationMode.BICUBIC, antialias=True)
        assert (reduced.crop(list(box), SIZE).int() - expected.int()).abs().max() <= 6
    cut = jpeg(image)[:2000]
    with pytest.raises(BadImage, match="an image without a name"):
        decode_present(cut, None, Rules(3, reduction=of_box(box)))


@pytest.mark.parametrize("crop", [RandomResizedCrop(0, (0.05, 1.0)), CenterCrop(SIZE, 0.9)])
def test_batches_are_as_with_whole_decoding_where_the_crop_allows_no_less(crop):
    images = [jpeg(waves(h, w)) for h, w in ((30, 39), (70, 90), (90, 120), (200, 300), (39, 500))]
    reducing, whole = files(*images).view(crop), files(*images).view(crop)
    whole.settings = ImageSettings(scaled_decoding=False)
    compared = [0, 0]
    for epoch in range(6):
        ours, expected = (which.batch(epoch, [0, 1, 2, 3, 4])["images"] for which in (reducing, whole))
        for i, (height, width) in enumerate([(30, 39), (70, 90), (90, 120), (200, 300), (39, 500)]):
            _, _, h, w = crop(epoch, [i], height, width)[0][0].tolist()
            reduced = h >= 2 * SIZE[0] and w >= 2 * SIZE[1]
            compared[reduced] += 1
            if reduced:
                assert not torch.equal(ours[i], expected[i])
                assert (ours[i].int() - expected[i].int()).abs().max() <= 8
            else:
                assert torch.equal(ours[i], expected[i])
            # It depends on the image and its crop alone, not on the rest of the batch.
            assert torch.equal(reducing.batch(epoch, [i])["images"][0], ours[i])
    assert min(compared) >= 5


def test_sets_of_decimals_are_decoded_whole():
    images = files(jpeg(waves(200, 300)))
    images.dtype = torch.float32
    assert images.batch(0, [0])["images"].dtype == torch.float32
