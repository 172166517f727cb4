"""What a row of a source is called: the name of its file, or else its number; and its label in words."""

import os

import datasets
import pyarrow
import pyarrow.compute

from ..stream.shards import ShardedRows
from .sources import Source


class RowNames:
    """Names and labels of a source's rows, without reading the images."""

    def __init__(self, source: Source):
        self.source = source
        dataset, self._labels = source.dataset, None
        feature = dataset.features[source.label_column] if source.label_column else None
        self._class_label = getattr(feature, "feature", feature)  # of a list, what it holds
        if not isinstance(self._class_label, datasets.ClassLabel) or not self._class_label.names:
            self._class_label = None
        if isinstance(dataset, ShardedRows):
            self._labels = dataset[source.label_column] if source.label_column else None
        else:
            columns = [source.image_column, *[source.label_column] * bool(source.label_column)]
            self._table = dataset.select_columns(columns).with_format("arrow")

    def files(self, start: int, end: int, numbers: list[int] | None = None) -> list[str]:
        """For each of the rows `start` to `end` - 1 the path of its file, relative to the source's folder where it has
        one. A row without a file is called by its number, counted from 0, or by its own in `numbers`."""
        if isinstance(self.source.dataset, ShardedRows):
            paths = self.source.dataset.names(start, end)
        else:
            cells = self._table[start:end].column(self.source.image_column)
            paths = [None] * len(cells)
            if pyarrow.types.is_struct(cells.type):
                paths = pyarrow.compute.struct_field(cells, "path").to_pylist()
        folder = self.source.folder + os.sep if self.source.folder else None
        names = [path.removeprefix(folder) if path and folder else path for path in paths]
        # A name that is not UTF-8 has letters that no table can hold.
        numbered = [name or str(numbers[row] if numbers else row) for row, name in enumerate(names, start)]
        return [name.encode("utf-8", "replace").decode() for name in numbered]

    @property
    def types(self) -> dict[str, pyarrow.DataType]:
        """Types of the columns `row`, `file` and, where there are labels, `label`."""
        types = {"row": pyarrow.int64(), "file": pyarrow.string()}
        if self.source.label_column is None:
            return types
        feature = self.source.dataset.features[self.source.label_column]
        if self._class_label is None:
            label = datasets.Features({"label": feature}).arrow_schema.field("label").type
        else:
            one = isinstance(feature, datasets.ClassLabel)
            label = pyarrow.string() if one else pyarrow.list_(pyarrow.string())
        return {**types, "label": label}

    def labels(self, start: int, end: int) -> list | None:
        """The labels of these rows: names of classes where the source has them, else its own values; None without
        labels."""
        if self.source.label_column is None:
            return None
        if self._labels is not None:
            values = self._labels[start:end]
        else:
            values = self._table[start:end].column(self.source.label_column).to_pylist()
        return [self._in_words(value) for value in values]

    def _in_words(self, value):
        if self._class_label is None or value is None:
            return value
        if isinstance(value, list):
            return [self._in_words(one) for one in value]
        return self._class_label.names[value] if value >= 0 else None  # below 0 is no label
