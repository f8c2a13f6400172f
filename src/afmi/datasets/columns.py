"""The columns of explanations: what is kept of each image, and in how many bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from afmi import specs
from afmi.evaluation.directory import storable
from afmi.explanation import Compared, Explanation
from afmi.methods import Attribution
from afmi.targets import Class

__all__ = ["Layout", "Row", "compared_of", "map_of", "table_of"]


@dataclass(frozen=True)
class Layout:
    """Which columns there are, and how long their lists: the same in all tables of a run.

    Attributes:
        vector: ``importance`` or ``contribution``, or None.
        features: how many numbers a vector has, K.
        classes: those whose contributions are kept of every image.
        maps: whether maps are kept.
        map: sides of all maps, at the layer's size; None: they differ, and each row says its own.
        size: sides of all images, as the network sees them; None: likewise.
        predicted: whether the class predicted is another thing than what is explained.
        named: whether what is explained is no class, so that each row says what it is.
    """

    vector: str | None
    features: int
    classes: tuple[int, ...]
    maps: bool
    map: tuple[int, ...] | None
    size: tuple[int, ...] | None
    predicted: bool
    named: bool

    @classmethod
    def of(
        cls,
        attribution: Attribution,
        explanation: Explanation,
        *,
        vector: str | None,
        classes: tuple[int, ...],
        maps: bool,
        alike: bool,
        predicted: bool,
    ) -> Layout:
        """Return the layout for explanations like this one.

        Args:
            attribution: of a batch.
            explanation: of an image in it.
            vector: see `Layout`.
            classes: see `Layout`.
            maps: whether maps are kept.
            alike: whether all images have one size.
            predicted: see `Layout`.
        """
        assert attribution.coarse is not None
        return cls(
            vector=vector,
            features=0 if vector is None else attribution.vectors[vector].shape[1],
            classes=classes,
            maps=maps,
            map=tuple(attribution.coarse.shape[2:]) if alike else None,
            size=tuple(explanation.map.shape) if alike else None,
            predicted=predicted,
            named=not isinstance(explanation.target, Class),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Return the layout that `as_json` describes."""
        sides = {key: data[key] and tuple(data[key]) for key in ("map", "size")}
        sides["classes"] = tuple(data["classes"])
        return cls(**{**data, **sides})

    def as_json(self) -> dict[str, Any]:
        """Return what JSON holds."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        fields: list[Any] = [
            ("key", pa.string()),
            ("class", pa.int32()),
            ("label", pa.string()),
            ("score", pa.float32()),
            ("probability", pa.float32()),
            ("residual", pa.float32()),
            ("agreement", pa.float32()),
        ]
        if self.predicted:
            fields += [
                ("predicted", pa.int32()),
                ("predicted_label", pa.string()),
                ("predicted_probability", pa.float32()),
            ]
        if self.named:
            fields += [("target", pa.string()), ("compared", pa.string())]
        if self.vector is not None:
            fields += [(self.vector, pa.list_(pa.float32(), self.features))]
        if self.classes:
            length = len(self.classes) * self.features
            fields += [("contributions", pa.list_(pa.float32(), length))]
        if self.maps:
            length = -1 if self.map is None else math.prod(self.map)
            fields += [("scale", pa.float32()), ("map", pa.list_(pa.float16(), length))]
        if self.size is None:
            sides = pa.list_(pa.int32())
            fields += [("map_size", sides), ("size", sides)]
        return pa.schema([*fields, ("error", pa.string())])


@dataclass(frozen=True)
class Row:
    """What is kept of one image, by column; what is missing is null."""

    columns: dict[str, Any]

    @classmethod
    def failed(cls, key: str, reason: str) -> Row:
        """Return the row of an image that could not be read or explained."""
        return cls({"key": storable(key), "error": storable(reason)})

    @classmethod
    def of(
        cls,
        key: str,
        explanation: Explanation,
        attributions: Sequence[Attribution],
        n: int,
        layout: Layout,
    ) -> Row:
        """Return the row of an explanation.

        Args:
            key: of the image.
            explanation: of it.
            attributions: of its batch; the first of what is explained, the others of the layout's
                classes.
            n: its place in the batch.
            layout: of the tables.

        Raises:
            ValueError: the sizes are not those of the layout.
        """
        one, attribution = explanation, attributions[0]
        if attribution.coarse is None:
            raise ValueError("its batch has maps of several sizes; explain images one by one")
        columns: dict[str, Any] = {
            "key": storable(key),
            "class": one.class_index,
            "label": storable(one.label),
            "score": one.score,
            "probability": one.probability,
            "residual": one.residual,
            "agreement": one.agreement,
            "predicted": one.predicted,
            "predicted_label": one.predicted_label,
            "predicted_probability": one.predicted_probability,
        }
        if layout.named:
            columns["target"] = storable(specs.text(one.target))
            columns["compared"] = json.dumps([list(vars(each).values()) for each in one.compared])
        if layout.vector is not None:
            columns[layout.vector] = _numbers(attribution.vectors[layout.vector][n])
        if layout.classes:
            each = [_numbers(other.vectors["contribution"][n]) for other in attributions[1:]]
            columns["contributions"] = np.concatenate(each)
        coarse = attribution.coarse[n, 0].detach().to("cpu", torch.float64).numpy()
        if layout.maps:
            columns["scale"], columns["map"] = _halved(coarse)
        columns |= {"map_size": list(coarse.shape), "size": list(one.map.shape)}
        if layout.map not in (None, coarse.shape):
            raise ValueError(
                f"its map has the sides {coarse.shape}, and those before {layout.map}; explain "
                "images of different sizes by a network that crops none, or apart"
            )
        return cls(columns)


def _numbers(vector: Tensor) -> np.ndarray:
    return vector.detach().to("cpu").numpy().astype(np.float32)


def _halved(values: np.ndarray) -> tuple[float, np.ndarray]:
    """Return a power of two, and the map divided by it in float16, flat, which lies in [-1, 1].

    By themselves most gradients would be too small for float16, and some scores too large.
    """
    largest = float(np.abs(values).max(initial=0))
    # As float32 has them, so that the scale is what is stored.
    scale = 2.0 ** min(max(math.frexp(largest)[1], -126), 127) if largest else 1.0
    return scale, (values / scale).astype(np.float16).reshape(-1)


def map_of(scale: float, flat: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Return a map, float32, at the layer's size, of what is stored of it."""
    return flat.astype(np.float32).reshape(tuple(sides)) * np.float32(scale)


def compared_of(text: str | None) -> tuple[Compared, ...]:
    """Return the classes that a target compares, of what is stored of them."""
    return tuple(Compared(*each) for each in json.loads(text or "[]"))


def table_of(rows: Sequence[Row], layout: Layout) -> pa.Table:
    """Return the rows as a table."""
    schema = layout.schema
    arrays = [
        pa.array([row.columns.get(field.name) for row in rows], field.type) for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
