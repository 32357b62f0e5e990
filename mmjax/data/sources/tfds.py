"""Any TensorFlow Datasets dataset, without TensorFlow: random access to ArrayRecord files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.errors import nearest as near
from mmjax.data.images import MAX_PIXELS, check_pixels, decode_image
from mmjax.data.levels import to_bytes
from mmjax.data.spelling import nearest
from mmjax.data.splits import check_images, fingerprint
from mmjax.data.types import BadRecordError, Record

GROUPS = 2**31  # the numbers that groups have are below it


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A prepared dataset, by name or by the directory of one version of it.

    Attributes:
      name: "mnist", "my_dataset:1.0.0", or a directory that holds `dataset_info.json`.
      data_dir: where datasets by name are kept; default: TFDS's own default.
      split: one of the dataset's own, or a slice such as "train[:90%]".
      image_field: feature of the image, encoded or an array of numbers; left out if None, or where there is no feature "image".
      label_field: feature of the class; left out if None, or where there is no feature "label". Negative ones are no class: -1.
      text_field: feature of the caption, or of a list of captions; "captions/text" reaches into a nested feature.
      window: (low, high), the values that become black and white in images of more than 8 bits; None for a scale that the image
        itself gives, see `levels.to_bytes`.
      max_pixels: an image of more pixels counts as unreadable.
    """

    name: str = setting(everyday=True)
    data_dir: str | None = setting(path=True, default=None)
    split: str = "train"
    image_field: str | None = "image"
    label_field: str | None = "label"
    text_field: str | None = None
    window: tuple[float, float] | None = None
    max_pixels: int = setting(least=1, default=MAX_PIXELS)

    def build(self) -> TFDSRecords:
        """Records of the split; grouped by label where there is no text.

        Raises:
          UserError: an unknown dataset, split or feature; a dataset that is not prepared, or not as ArrayRecord; a window that
            is none.
        """
        check_images("TFDS", self.window, self.max_pixels)
        import tensorflow_datasets as tfds  # a third of a second and many modules, which other sources need not spend

        builder = self._builder(tfds)
        info = builder.info
        if not info.splits:
            tip = f"prepare it with: tfds build {self.name} --file_format=array_record"
            raise UserError(f"TFDS.name={self.name!r}: not prepared in {builder.data_dir}; {tip}")
        fields = {key: field for key in ("image", "text", "label") if (field := self._field(key, info.features))}
        if "image" not in fields and "text" not in fields:
            raise UserError(f"TFDS.name={self.name!r}: neither an image nor a text_field; it has {', '.join(info.features)}")
        encoded = "image" in fields and isinstance(info.features[self.image_field], tfds.features.Image)
        decoders = {self.image_field: tfds.decode.SkipDecoding()} if encoded else None
        try:
            size = info.splits[self.split].num_examples
            examples = builder.as_data_source(split=self.split, decoders=decoders)
        except (ValueError, KeyError):
            raise UserError(f"TFDS.split={self.split!r} is not a split{nearest(self.split, info.splits)}") from None
        except NotImplementedError:
            tip = "prepare it again with --file_format=array_record"
            raise UserError(f"TFDS.name={self.name!r}: stored as {info.file_format.value}; {tip}") from None
        if not size:
            raise UserError(f"TFDS.split={self.split!r}: the split is empty")
        names = getattr(info.features[self.label_field], "names", None) if "label" in fields else None
        names = tuple(names or ())
        return TFDSRecords(info.full_name, self.split, examples, fields, names, self.window, self.max_pixels)

    def _builder(self, tfds: Any) -> Any:
        if (Path(self.name) / "dataset_info.json").is_file():
            return tfds.builder_from_directory(self.name)
        try:
            return tfds.builder(self.name, data_dir=self.data_dir)
        except tfds.core.DatasetNotFoundError:
            close = near(self.name, tfds.list_builders(with_community_datasets=False))  # hundreds: the nearest alone
            raise UserError(f"TFDS.name={self.name!r}: no dataset of that name, no prepared directory{close}") from None

    def _field(self, key: str, features: Any) -> str | None:
        """The feature to read `key` from, None where the default is not there."""
        option = f"{key}_field"
        field = getattr(self, option)
        if field is None or field.split("/")[0] in features:
            return field
        if field == type(self).__dataclass_fields__[option].default:
            return None
        raise UserError(f"TFDS.{option}={field!r} is not a feature of {self.name}{nearest(field, features)}")


@dataclasses.dataclass(frozen=True, eq=False)
class TFDSRecords:
    """One split, read when asked for.

    Attributes:
      name: dataset, config and version.
      split: as the user wrote it.
      examples: TFDS's data source, images left encoded.
      fields: "image", "text" or "label" -> the feature it comes from.
      classes: names in label order, () if the dataset has none.
      window, max_pixels: as the source has them.
    """

    name: str
    split: str
    examples: Sequence[Any]
    fields: dict[str, str]
    classes: tuple[str, ...]
    window: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> Record:
        example = self.examples[index]
        record: Record = {}
        if "image" in self.fields:
            record["image"] = self._image(_reach(example, self.fields["image"]), index)
        if "text" in self.fields:
            record["text"] = _text(_reach(example, self.fields["text"]))
        if "label" in self.fields:
            label = max(-1, int(_reach(example, self.fields["label"])))
            record["label"] = label
            if self.classes and label >= 0:
                record["name"] = self.classes[label]
            if "text" not in self.fields:  # what has no class is a group of its own
                record["group"] = label if label >= 0 else GROUPS - 1 - index
        return record

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        value = _reach(self.examples[index], self.fields["image"]) if "image" in self.fields else None
        return value if isinstance(value, bytes) else None

    def texts(self) -> Iterator[str]:
        if "text" in self.fields:
            for index in range(len(self)):
                text = _text(_reach(self.examples[index], self.fields["text"]))
                yield from (text,) if isinstance(text, str) else text

    def fingerprint(self) -> str:
        return fingerprint([self.name, self.split, str(len(self)), *self.classes])

    def _image(self, value: Any, index: int) -> np.ndarray:
        where = f"{self.name} {self.split}[{index}]"
        if isinstance(value, bytes):
            return decode_image(value, where, self.window, self.max_pixels)
        image = np.asarray(value)
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype.kind not in "uif" or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
            found = f"{image.dtype} {list(image.shape)}"
            raise BadRecordError(where, f"an image is [H, W, 3], [H, W, 1] or [H, W] of numbers, not {found}")
        check_pixels(image.shape[0], image.shape[1], self.max_pixels, where)
        image = image if image.dtype == np.uint8 else to_bytes(image, self.window, where)
        return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _reach(example: Any, field: str) -> Any:
    """ "captions/text" of an example: into dicts, and through the elements of a list."""
    for part in field.split("/"):
        example = [item[part] for item in example] if isinstance(example, list) else example[part]
    return example


def _text(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, bytes | str):
        return value.decode() if isinstance(value, bytes) else value
    return tuple(item.decode() if isinstance(item, bytes) else str(item) for item in value)
