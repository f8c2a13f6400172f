"""FMI prototypes: does feature map importance tell the classes apart (the paper's RQ1)?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from afmi import specs
from afmi.errors import ShapeError, SourceError, TargetError, UsageError, first_line
from afmi.files import as_json, location, parse_json, write_files
from afmi.methods.feature_maps.afmi import AFMI
from afmi.network.fingerprint import fingerprint_of
from afmi.network.randomness import image_generator
from afmi.stores import RemotePath, shown

__all__ = ["FMIPrototypes", "PrototypeMatches", "PrototypesOrigin", "file_content", "shuffled"]

_KEY = "afmi prototypes"
_FORMAT = 1
_NO_ORIGIN = (
    "expected prototypes with an origin, which says what FMI compares with them, got none; "
    "afmi.fmi_prototypes gives it"
)


@dataclass(frozen=True)
class PrototypesOrigin:
    """What prototypes were made of: only the FMI of the same network and layer compares with them.

    Attributes:
        fingerprint: of the network; see `afmi.network.fingerprint.fingerprint_of`.
        layer: whose feature maps have the FMI.
        reference: what the images were compared with, as text.
        labels: of the classes; none where the network has none.
        data: the fingerprint of the list of training images; of several lists joined by +.
        unread: how many images are missing, since they could not be read or explained.
        versions: of the packages that decide the numbers.
    """

    fingerprint: str
    layer: str
    reference: str
    labels: tuple[str, ...]
    data: str
    unread: int
    versions: Mapping[str, str]

    def joined(self, other: PrototypesOrigin) -> PrototypesOrigin:
        """Return the origin of the sum of both.

        Raises:
            UsageError: when they are of different networks, layers, references or versions.
        """
        mine, others = ({**asdict(one), "data": "", "unread": 0} for one in (self, other))
        wrong = next((part for part in mine if mine[part] != others[part]), None)
        if wrong is not None:
            raise UsageError(
                f"expected parts whose {wrong} is the same, got {mine[wrong]} and {others[wrong]}; "
                "their FMI does not compare"
            )
        together = f"{self.data}+{other.data}"
        return replace(self, data=together, unread=self.unread + other.unread)

    def check(self, method: AFMI, inputs: Tensor) -> None:
        """Raise unless a method's FMI compares with the prototypes.

        Cost: all weights are read.

        Args:
            method: gives the FMI.
            inputs: images (N, C, *spatial) that it is computed for.

        Raises:
            UsageError: when its network, layer or reference is another.
        """
        here = {
            "network": fingerprint_of(method.model),
            "layer": str(method.resolved_layer(inputs)[1]),
            "reference": specs.text(method.reference),
        }
        there = {"network": self.fingerprint, "layer": self.layer, "reference": self.reference}
        for part, value in here.items():
            if value != there[part]:
                raise UsageError(
                    f"expected FMI of the {part} that the prototypes were made with, "
                    f"{there[part]}, got {value}; make prototypes for this {part} with "
                    "afmi.fmi_prototypes"
                )


@dataclass(frozen=True, eq=False)
class PrototypeMatches:
    """How the FMI of images compares with the classes' prototypes.

    Attributes:
        cosine: of the angle to the prototype of each image's class, float64 (N,); NaN where the
            class has none.
        nearest: the class whose prototype is the nearest, int64 (N,); see `FMIPrototypes.classify`.
        nearest_cosine: of the angle to it, float64 (N,); NaN where there is none.
        agree: whether the nearest is the image's class, bool (N,).
    """

    cosine: Tensor
    nearest: Tensor
    nearest_cosine: Tensor
    agree: Tensor


@dataclass(frozen=True, eq=False)
class FMIPrototypes:
    """Classify images by the cosine of their FMI vectors with each class's mean FMI vector.

    ĉ = argmax_c cos(FMI(x), P_c), with the prototype P_c the mean of FMI^c over the training
    images of class c. Sums and counts are kept instead of means, so that the images can be taken
    in parts and the parts added: ``FMIPrototypes.of(…) + FMIPrototypes.of(…)``.

    Paper: *A-FMI*, ICLR 2021 submission, Section 4.1 (RQ1). Differs: nothing. Where the head is
    linear, FMI^c is the same for every image of a class, and the agreement is 100 % by
    construction.
    Cost: none but that of `AFMI.feature_map_importance`.

    Args:
        sums: sum of the FMI vectors of each class's images, float64 (C, K) on the CPU.
        counts: how many images each class had, int64 (C,).
        origin: what they were made of, for a file; None: who holds them knows.

    Example:
        >>> importance = torch.tensor([[1.0, 0.0], [3.0, 0.2], [0.0, 2.0]])
        >>> classes = torch.tensor([0, 0, 1])
        >>> prototypes = FMIPrototypes.of(importance, classes, n_classes=2)
        >>> prototypes.prototypes.tolist()
        [[2.0, 0.1...], [0.0, 2.0]]
        >>> others = torch.tensor([[1.0, 0.5], [0.9, 0.8]])
        >>> prototypes.agreement(others, torch.tensor([0, 1])).tolist()
        [True, False]
    """

    sums: Tensor
    counts: Tensor
    origin: PrototypesOrigin | None = None

    @classmethod
    def of(cls, importance: Tensor, classes: Tensor, n_classes: int) -> FMIPrototypes:
        """Return the prototypes of these images alone.

        Args:
            importance: FMI vectors, (N, K); none (0, K) is allowed.
            classes: of the images, for which the FMI vectors were computed, int64 (N,).
            n_classes: C.

        Raises:
            ShapeError: when there is not one class for each vector.
            TargetError: when a class is out of range.
        """
        vectors, labels = _vectors(importance), _labels(classes, importance)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
            raise TargetError(
                f"expected classes from 0 to {n_classes - 1}, got {int(labels.min())} to "
                f"{int(labels.max())}"
            )
        sums = torch.zeros(n_classes, vectors.shape[1], dtype=torch.float64, device="cpu")
        return cls(sums.index_add(0, labels, vectors), labels.bincount(minlength=n_classes))

    def __add__(self, other: FMIPrototypes) -> FMIPrototypes:
        """Return the prototypes of both parts' images.

        Raises:
            ShapeError: when they are not of as many classes and feature maps.
            UsageError: when their origins do not compare.
        """
        if not isinstance(other, FMIPrototypes):
            return NotImplemented
        if self.sums.shape != other.sums.shape:
            raise ShapeError(
                "expected parts of the same classes and feature maps, got (C, K) = "
                f"{tuple(self.sums.shape)} and {tuple(other.sums.shape)}"
            )
        origin = None
        if self.origin is not None and other.origin is not None:
            origin = self.origin.joined(other.origin)
        return FMIPrototypes(self.sums + other.sums, self.counts + other.counts, origin)

    @property
    def prototypes(self) -> Tensor:
        """Mean FMI vector of each class, float64 (C, K); NaN for classes without images."""
        return self.sums / self.counts[:, None]

    def cosines(self, importance: Tensor) -> Tensor:
        """Return the cosine of the angle between each FMI vector and each class's prototype.

        Args:
            importance: FMI vectors, (N, K).

        Returns:
            float64 (N, C), to twelve decimals; −∞ for a class without images, or whose prototype is
            zero; 0 where the vector is zero.
        """
        vectors = _vectors(importance)
        if vectors.shape[1] != self.sums.shape[1]:
            raise ShapeError(
                f"expected FMI vectors of {self.sums.shape[1]} feature maps, as the prototypes "
                f"have, got {vectors.shape[1]}"
            )
        # A class's sum points where its mean does, and is 0 where it has no images.
        cosine = _directions(vectors) @ _directions(self.sums).T
        return torch.round(cosine, decimals=12).where((self.sums != 0).any(1), -torch.inf)

    def classify(self, importance: Tensor) -> Tensor:
        """Return the class whose prototype is the nearest by the cosine of the angle.

        Similarities that are equal to twelve decimals are a tie, which the lowest class wins. A
        class without images, or whose prototype is zero, is never chosen.

        Args:
            importance: FMI vectors, (N, K).

        Returns:
            int64 (N,); −1 where the vector is zero, or no class has a prototype.
        """
        return _nearest(self.cosines(importance), importance)

    def agreement(self, importance: Tensor, classes: Tensor) -> Tensor:
        """Return whether `classify` finds each image's class, bool (N,)."""
        return self.classify(importance) == _labels(classes, importance)

    def matches(
        self, method: AFMI, inputs: Tensor, classes: Tensor, importance: Tensor | None = None
    ) -> PrototypeMatches:
        """Compare the FMI of images with prototypes of the same network, layer and reference.

        Cost: all weights are read, to know the network again.

        Args:
            method: gives the FMI.
            inputs: images (N, C, *spatial).
            classes: that are explained, int64 (N,).
            importance: FMI vectors of these classes, (N, K), where they are known.

        Raises:
            UsageError: when the prototypes are of another network, layer or reference, or do not
                tell.
        """
        if self.origin is None:
            raise UsageError(_NO_ORIGIN)
        self.origin.check(method, inputs)
        if importance is None:
            importance = method.feature_map_importance(inputs, classes)
        cosines, labels = self.cosines(importance), _labels(classes, importance)
        nearest = _nearest(cosines, importance)
        cosine = cosines.gather(1, labels[:, None])[:, 0]
        largest = cosines.gather(1, nearest.clamp(min=0)[:, None])[:, 0]
        return PrototypeMatches(
            cosine.where(cosine.isfinite(), torch.nan),
            nearest,
            largest.where(nearest >= 0, torch.nan),
            nearest == labels,
        )

    def save(self, path: str | os.PathLike[str] | RemotePath) -> None:
        """Write them to a .safetensors file, or a URL: the same bytes for the same prototypes.

        Raises:
            UsageError: when they do not tell their origin.
            AfmiError: when the file cannot be written.
        """
        if self.origin is None:
            raise UsageError(_NO_ORIGIN)
        # One entry: the order of several is not the same in each process.
        record = {_KEY: as_json({"format": _FORMAT, **asdict(self.origin)})}
        tensors = {"sums": self.sums.contiguous(), "counts": self.counts.contiguous()}
        write_files({location(path): safetensors.torch.save(tensors, record)})

    @classmethod
    def load(cls, path: str | os.PathLike[str] | RemotePath) -> FMIPrototypes:
        """Read what `save` wrote, from a file or a URL.

        Raises:
            UsageError: when the file cannot be read, or holds something else.
        """
        content = file_content(path)
        try:
            length = int.from_bytes(content[:8], "little")
            record = parse_json(parse_json(content[8 : 8 + length])["__metadata__"][_KEY])
            tensors = safetensors.torch.load(content)
            sums, counts = tensors["sums"], tensors["counts"]
            if record["format"] != _FORMAT:
                raise ValueError(f"its format is {record['format']}, not {_FORMAT}")
            told = {field.name: record[field.name] for field in fields(PrototypesOrigin)}
            told["labels"] = tuple(told["labels"])
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"expected FMI prototypes in {shown(str(path))!r}, as afmi.fmi_prototypes writes "
                f"them, got none: {first_line(error)}"
            ) from error
        return cls(sums, counts, PrototypesOrigin(**told))


def file_content(path: str | os.PathLike[str] | RemotePath) -> bytes:
    """Return the bytes of a file of prototypes, which may be a URL.

    Raises:
        UsageError: when there is none.
    """
    try:
        return location(path).read_bytes()
    except SourceError:
        raise
    except OSError as error:
        raise UsageError(
            f"expected FMI prototypes in {shown(str(path))!r}, got no file that can be read "
            f"({error.strerror or type(error).__name__}); afmi.fmi_prototypes writes one"
        ) from error


def shuffled(importance: Tensor, seed: int = 0, keys: Tensor | None = None) -> Tensor:
    """Permute the entries of each FMI vector: the control that no longer knows which map is which.

    Args:
        importance: (N, K).
        seed: of the permutations.
        keys: what each permutation depends on besides, (N, …): the images, or their numbers below
            2²⁴. None: the vector itself; then equal vectors stay equal, as all of a class are
            where the head is linear, so give keys there.

    Returns:
        (N, K), in the dtype and on the device of the vectors.

    Example:
        >>> shuffled(torch.arange(6.0)[None], seed=0).sort().values.tolist()
        [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]
    """
    if importance.dim() != 2:
        raise ShapeError(f"expected FMI vectors (N, K), got {tuple(importance.shape)}")
    keys = importance if keys is None else keys
    if keys.dim() < 1 or keys.shape[0] != importance.shape[0]:
        raise ShapeError(
            f"expected a key for each of {importance.shape[0]} vectors, got {tuple(keys.shape)}"
        )
    size = importance.shape[1]
    result = importance.clone()
    for row, key in zip(result, keys, strict=True):
        order = torch.randperm(size, generator=image_generator(seed, key), device="cpu")
        row.copy_(row[order.to(row.device)])
    return result


def _nearest(cosines: Tensor, importance: Tensor) -> Tensor:
    decided = (importance.detach().cpu() != 0).any(1) & (cosines > -torch.inf).any(1)
    return cosines.argmax(1).where(decided, -1)


def _directions(vectors: Tensor) -> Tensor:
    """Return vectors (…, K) at length 1; zero ones stay zero."""
    # By the largest entry first, so that the squares of tiny numbers do not vanish.
    largest = vectors.abs().amax(-1, keepdim=True)
    scaled = vectors / largest.where(largest > 0, 1.0)
    length = scaled.norm(dim=-1, keepdim=True)
    return scaled / length.where(length > 0, 1.0)


def _vectors(importance: Tensor) -> Tensor:
    if importance.dim() != 2 or importance.shape[1] == 0 or not importance.is_floating_point():
        raise ShapeError(
            "expected floating-point FMI vectors (N, K), got "
            f"{tuple(importance.shape)} {importance.dtype}; AFMI.feature_map_importance gives them"
        )
    vectors = importance.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(vectors).all()):
        raise UsageError("expected finite FMI vectors, got NaN or infinity")
    return vectors


def _labels(classes: Tensor, importance: Tensor) -> Tensor:
    whole = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
    if classes.shape != importance.shape[:1] or not whole:
        raise ShapeError(
            f"expected one integer class for each of {importance.shape[0]} FMI vectors, got shape "
            f"{tuple(classes.shape)} {classes.dtype}"
        )
    return classes.detach().to("cpu", torch.int64)
