"""The functions of `data` with flat options, as tests name them: short, and without the settings' classes."""

from dataclasses import fields

from modeling_mae.data.find import joined, sources
from modeling_mae.data.find.sources import Source, SourceSettings
from modeling_mae.data.serve import images as images_module
from modeling_mae.data.serve.decoded import Machine, Memory
from modeling_mae.data.serve.images import FileImages, Images, ImageSettings, Opening


def opening(
    size, num_channels, *, memory_budget=0, machine: Machine | None = None, num_workers=0, **settings
) -> Opening:
    memory = Memory(memory_budget, machine or Machine(), num_workers)
    return Opening(size, num_channels, ImageSettings(**settings), memory)


def open_images(source: Source, size, num_channels, *, labels=None, **options) -> Images:
    return images_module.open_images(source, opening(size, num_channels, **options), labels)


def file_images(source: Source, size, num_channels, *, labels=None, **settings) -> FileImages:
    return FileImages(source, opening(size, num_channels, **settings), labels)


def _split_up(options: dict) -> tuple[SourceSettings, dict]:
    names = {field.name for field in fields(SourceSettings)}
    settings = SourceSettings(**{name: value for name, value in options.items() if name in names})
    return settings, {name: value for name, value in options.items() if name not in names}


def load_source(**options) -> Source:
    settings, rest = _split_up(options)
    return sources.load_source(settings, **rest)


def load_training_source(**options) -> Source:
    return joined.load_training_source(SourceSettings(**options))


def load_eval_source(**options) -> tuple[Source, str]:
    return joined.load_eval_source(SourceSettings(**options))
