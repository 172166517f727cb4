"""The app as a Hugging Face Space: writes a folder with everything that it needs, and pushes it to the Hub."""

import io
import json
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio
import numpy as np
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError
from .explorer import Explorer


if TYPE_CHECKING:
    from ..data.read.stored import Stored


PACKAGE = Path(__file__).parents[1]
PYTHON = "3.12"
# As in setup.cfg: what the package needs, and its extra `app`. A test compares them.
REQUIREMENTS = """torch>=2.7.1
transformers>=5.18
accelerate>=1.14
datasets>=3.6
gradio>=6.31
matplotlib>=3.9.4
numpy>=2.0.2
pillow>=11.0
imagecodecs>=2025.3.30
safetensors>=0.8
tifffile>=2024.8.10
torchvision>=0.22.1
tqdm
"""
APP = '''"""The page of this Space, written by `mae app --to_space`."""

from modeling_mae.app.command import serve


serve({checkpoint!r}, {images!r}, {most}, title={title!r}, hosts=['*'])  # the Hub's proxy checks names
'''
CARD = """---
title: {title}
emoji: 🧩
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
{models}---

# {name}

Look at the masked autoencoder {what}: hide patches of an image and see what it reconstructs, what its tokens attend
to, and the principal components of its patch features.
"""


def make_space(
    checkpoint: str, space: str, folder: Path | None, *, images: str | None, most: int, private: bool
) -> Path:
    """Write the app of `checkpoint` into `folder` (by default named like the Space) and push it if there is a token. A
    checkpoint on this machine is copied into the folder. A Space loads one on the Hub by its name.

    At most `most` files of the folder `images` are copied too, evenly spaced.

    Raises:
        UserError: `space` is not a name/space, the checkpoint or the images cannot be read, `folder` holds something
            else, or the Hub refuses.
    """
    try:
        validate_repo_id(space)
    except HFValidationError:
        space = ""
    if "/" not in space:
        raise UserError("--to_space needs the name of a Space, as me/demo: your name on the Hub, and the Space's name")
    folder = folder or Path(space.split("/")[1])
    _claim(folder)
    explorer = Explorer(checkpoint)  # also for one on the Hub, so that errors show up here and not in the Space
    is_local = Path(checkpoint).exists()
    title = Path(checkpoint).resolve().name if is_local else checkpoint
    write_app(folder, space, "model" if is_local else checkpoint, title, "images" if images else None, most)
    if is_local:
        explorer.model.save_pretrained(folder / "model")
        explorer.processor().save_pretrained(folder / "model")
    if images:
        count = _copy_images(images, folder / "images", most)
        seen = "you alone" if private else "everybody"
        print(f"images     {count:,} go into the Space, where {seen} can see them")
    print(f"written    {folder}; try it with `cd {shlex.quote(str(folder))} && python app.py`")
    if get_token() is None:
        command = f"hf upload {space} {shlex.quote(str(folder))} . --repo-type space" + " --private" * private
        print(f"not pushed, because there is no token: run `hf auth login`, then `{command}`")
        return folder
    from ..hub.push import push_space  # imported late: it loads the training's libraries

    print(f"pushed     {push_space(folder, space, private=private)}")
    return folder


def _claim(folder: Path) -> None:
    """Make `folder`, or empty it if it holds a Space of this command.

    Raises:
        UserError: it holds anything else.
    """
    if folder.exists():
        app = folder / "app.py"
        is_ours = app.is_file() and "mae app --to_space" in app.read_text(encoding="utf-8", errors="replace")
        if not is_ours and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{str(folder)!r} exists, and --to_space did not write it: give another --space_dir")
        for name in ("model", "images", PACKAGE.name):
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def write_app(folder: Path, space: str, checkpoint: str, title: str, images: str | None, most: int) -> None:
    """Writes the page, the card, the requirements, and this package: all except the checkpoint and the images."""
    name = space.split("/")[1]
    on_hub = checkpoint == title
    card = CARD.format(
        title=json.dumps(name),  # YAML reads JSON's strings
        gradio=gradio.__version__,
        python=PYTHON,
        models=f"models:\n- {checkpoint}\n" if on_hub else "",
        name=name,
        what=f"[{title}](https://huggingface.co/{title})" if on_hub else f"`{title}`",
    )
    app = APP.format(checkpoint=checkpoint, images=images, most=most, title=title)
    for file, text in (("app.py", app), ("README.md", card), ("requirements.txt", REQUIREMENTS)):
        (folder / file).write_text(text, encoding="utf-8")
    for source in PACKAGE.rglob("*.py"):
        target = folder / PACKAGE.name / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _copy_images(images: str, folder: Path, most: int) -> int:
    """Copies images of the folder `images`, also from parquet files, evenly spaced. Returns their number.

    All are decoded and encoded again, so that no metadata goes out with them.

    Raises:
        UserError: a row names a file outside the folder, or one that is not an image.
    """
    from ..data.find.sources import SourceSettings, load_source
    from ..data.read.arrays import cell_of  # imported late: it loads `datasets`

    source = load_source(SourceSettings(train_dir=images))
    count, inside = min(most, len(source)), Path(images).expanduser().resolve()
    rows = sorted({round(i * (len(source) - 1) / max(1, count - 1)) for i in range(count)})
    folder.mkdir()
    for row in rows:
        columns: Any = source.dataset[row]
        cell = cell_of(columns[source.image_column])
        path, data = Path(cell["path"] or ""), cell["bytes"]
        if data is None:
            if not path.resolve().is_relative_to(inside):
                raise UserError(f"{images!r}: image {row} is the file {str(path)!r} outside this folder: leave it out")
            data = path.read_bytes()
        name, data = _rewritten(path.name or f"image {row}", data)
        (folder / f"{row:06d}-{name}").write_bytes(data)
    return len(rows)


def _rewritten(name: str, data: bytes) -> tuple[str, bytes]:
    """(name, bytes) of the pixels of an image alone: pictures as PNG, other numbers as an .npy file.

    Raises:
        UserError: the bytes are not an image.
    """
    import imagecodecs  # these are imported late: they take a moment

    from ..data.read.decode import stored_of
    from ..data.read.faults import BadImage, reading
    from ..data.read.limits import MOST_PIXELS, Limit

    try:
        with reading(name):
            stored = stored_of(data, name, Limit.of(data, name, MOST_PIXELS))
            values = _numbers(stored, name)
    except BadImage as error:
        raise UserError(f"{error}: leave it out") from error
    is_deep = values.dtype == np.uint16 and (stored.is_picture or stored.alpha is not None)
    if stored.colour != "bands" and (values.dtype == np.uint8 or is_deep):
        return f"{Path(name).stem}.png", bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))
    written = io.BytesIO()
    np.save(written, np.moveaxis(values, -1, 0) if stored.axis is not None else values, allow_pickle=False)
    return f"{Path(name).stem}.npy", written.getvalue()


def _numbers(stored: "Stored", name: str) -> np.ndarray:
    """The upright values: ``(height, width, bands)`` where the file says what is a band. Transparency is the last one.

    Raises:
        BadImage: they are no numbers.
    """
    from ..data.read.meaning import Rules, image_of, numbers_of

    bands = 1 if stored.axis is None else stored.values.shape[stored.axis]
    if stored.colour == "bands" and stored.axis is None and stored.values.ndim != 2:  # as the .npy file has them
        numbers_of(stored, Rules(min(stored.values.shape)), name)
        return stored.values
    if stored.colour in ("palette", "cmyk"):
        bands = 3 + (stored.alpha is not None)
    if stored.alpha == "premultiplied":
        image, _ = image_of(stored, Rules(bands - 1), name)
        values = image.numpy() if stored.values.dtype == np.uint8 else np.round(image.numpy() * 257).astype(np.uint16)
    else:
        values = numbers_of(stored, Rules(bands), name).values
    return values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
