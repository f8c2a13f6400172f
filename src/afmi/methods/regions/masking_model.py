"""Masking model: a mask that a network trained for the purpose gives at once."""

from __future__ import annotations

import copy
import os
from dataclasses import KW_ONLY, dataclass, field

from torch import Tensor

from afmi.errors import ModelError, TargetError, UsageError
from afmi.methods.base import Attribution, Method
from afmi.methods.masking_network import MaskingNetwork, embedded_masks, load_masks
from afmi.methods.work import Work
from afmi.network.classifier import classify, name_of
from afmi.network.fingerprint import fingerprint_of
from afmi.network.guards import evaluation_mode
from afmi.network.scales import read_scales
from afmi.network.scored import Scored
from afmi.targets import Columns

__all__ = ["MaskingModel"]

_File = tuple[str, int, int]
"""Path, time of the last change in nanoseconds, and bytes of a file."""


@dataclass(frozen=True)
class MaskingModel(Method):
    """Show the mask that a trained network gives: what, kept alone, keeps the class.

    S = M(x, c) in [0, 1], the output of a decoder over the classifier's own feature maps at several
    scales, which was trained once, on many images, to make
    λ1 mean(M) + λ2 TV(M) − log p_c(Φ(x, M)) + λ3 p_c(Φ(x, 1 − M))^λ4 small, where
    Φ(x, M) = x ⊙ M + x̄ ⊙ (1 − M); see `afmi.training.masking_model`. Nothing is optimised for an
    image. For a class that is not there the mask was trained to be empty.

    It shows what the masking network learned, which is not the classifier itself: trained on other
    images, or with another seed, it is another map. Networks other than the embedded one need
    masks of their own: ``afmi train masking-model``.

    Paper: Dabkowski & Gal, *Real Time Image Saliency for Black Box Classifiers*, NeurIPS 2017,
    Eq. 3 and Section 4. Differs: the decoder takes as many scales as the classifier has, to a
    quarter of the image's sides, and is half as wide as in the authors' program. How the training
    differs, its own page says.
    Cost: 1 forward, and the decoder's, which is a fraction of it; once for all classes.

    Args:
        model: see `Method`.
        weights: a file of ``afmi train masking-model``, or the network that
            `afmi.training.train_masking_model` returns. None: the masks that come with the
            embedded network.
        check: whether the model must be the network that the masks were trained for, by its weights
            and normalisation. Without that, its layers must have the same names and channels; that
            is for parameter randomisation, and for asking what the masks make of other weights.

    Raises:
        ModelError: when there are no masks for this network, or they are those of another.
        TargetError: when anything but a class is to be explained.

    Example:
        >>> import torch
        >>> from afmi.methods.masking_network import untrained
        >>> body = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)]
        >>> model = torch.nn.Sequential(*body, torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
        >>> images = torch.rand(2, 3, 16, 16)
        >>> masks = untrained(model, images)  # `afmi train masking-model` trains such
        >>> MaskingModel(model, weights=masks).attribute(images, target=1).shape
        torch.Size([2, 1, 16, 16])
    """

    name = "Masking model"
    family = "region"
    scores = "perturbation"
    signed = False
    sides = (2,)
    paper = "Dabkowski & Gal, Real Time Image Saliency for Black Box Classifiers, NeurIPS 2017"

    _: KW_ONLY
    weights: str | os.PathLike[str] | MaskingNetwork | None = None
    check: bool = True
    _read_masks: tuple[_File, MaskingNetwork] | None = field(
        init=False, repr=False, compare=False, default=None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = (str, os.PathLike, MaskingNetwork)
        if self.weights is not None and not isinstance(self.weights, kinds):
            raise UsageError(
                f"expected a file of masks or a MaskingNetwork, got {type(self.weights).__name__}; "
                "`afmi train masking-model` writes such a file"
            )

    def work(self, inputs: Tensor) -> Work:
        """See `Method.work`; the decoder does not count."""
        return Work(1)

    def masks(self) -> MaskingNetwork:
        """Return the masking network for this model.

        Raises:
            ModelError: when there is none, or it was trained for another network.
        """
        if isinstance(self.model, Scored):
            raise TargetError(
                f"{self.name} explains classes only, for which its masks were trained; take a "
                "method that explains any target, such as A-FMI or RISE"
            )
        train = "train some with `afmi train masking-model --model … --data … --out FILE`"
        masks = self._given()
        fits = masks is not None and masks.fingerprint == fingerprint_of(self.model)
        if masks is None or (self.weights is None and self.check and not fits):
            raise ModelError(
                f"{self.name} has masks for the embedded network only, and {name_of(self.model)} "
                f"is another, or has other weights; {train}, and pass weights=FILE"
            )
        if self.check and not fits:
            given = "" if isinstance(self.weights, MaskingNetwork) else f" in {str(self.weights)!r}"
            raise ModelError(
                f"the masks{given} were trained for another network than {name_of(self.model)} "
                f"with these weights and this normalisation; {train}, or pass check=False"
            )
        return masks

    def _given(self) -> MaskingNetwork | None:
        """Return the masking network, read from its file when that is another than before."""
        if self.weights is None:
            return embedded_masks()
        if isinstance(self.weights, MaskingNetwork):
            return self.weights
        file = _file(self.weights)
        kept = self._read_masks
        if kept is not None and kept[0] == file:
            return kept[1]
        masks = load_masks(self.weights)[0]
        if file is not None:
            object.__setattr__(self, "_read_masks", (file, masks))
        return masks

    def _attribute(self, inputs: Tensor, columns: Columns) -> Attribution:
        return self._of_rows(inputs, [columns])[0]

    def _attribute_classes(self, inputs: Tensor, classes: Tensor) -> list[Attribution]:
        return self._of_rows(inputs, [Columns(row) for row in classes])

    def _of_rows(self, inputs: Tensor, columns: list[Columns]) -> list[Attribution]:
        """Return an attribution for each row of classes, from one pass of the classifier."""
        masks, maps, logits = self._read(inputs)
        rows = [row.of(logits) for row in columns]
        with evaluation_mode(masks):
            return [Attribution(masks(maps, row), row, logits) for row in rows]

    def _read(self, inputs: Tensor) -> tuple[MaskingNetwork, list[Tensor], Tensor]:
        """Return the masking network, the feature maps that it takes, and the logits."""
        try:
            masks = self.masks()
        except ModelError:
            classify(self.model, inputs)  # What is wrong with the network itself comes first.
            raise
        maps, logits = read_scales(self.model, inputs, masks.layers)
        channels = tuple(one.shape[1] for one in maps)
        if channels != masks.channels or logits.shape[1] != masks.classes:
            raise ModelError(
                f"the masks take layers of {masks.channels} channels and {masks.classes} classes, "
                f"but {name_of(self.model)} has {channels} and {logits.shape[1]}; they are those "
                "of another network"
            )
        like = masks.mask.weight
        if (like.dtype, like.device) != (maps[0].dtype, maps[0].device):
            masks = copy.deepcopy(masks).to(maps[0].device, maps[0].dtype)
        return masks, maps, logits


def _file(path: str | os.PathLike[str]) -> _File | None:
    """Return which file lies at a path now; None: none that can be looked at."""
    try:
        found = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):  # ValueError: a null byte in the path
        return None
    return os.path.abspath(os.path.expanduser(os.fspath(path))), found.st_mtime_ns, found.st_size
