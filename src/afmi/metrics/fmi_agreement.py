"""FMI agreement: is an image's feature map importance that of its class?"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from afmi.errors import UsageError
from afmi.methods.base import Method
from afmi.methods.feature_maps.afmi import AFMI
from afmi.methods.work import Work
from afmi.metrics.base import Case, Metric
from afmi.metrics.columns import Column
from afmi.metrics.fmi_prototypes import FMIPrototypes, file_content
from afmi.stores import shown

__all__ = ["FMIAgreement"]


@dataclass(frozen=True)
class FMIAgreement(Metric):
    """Tell whether an image's FMI lies nearest to its class's prototype.

    agreement = [argmax_c cos(FMI^y(x), P_c) = y], with y the class explained and P_c the mean FMI
    of class c's training images, and cosine = cos(FMI^y(x), P_y). A low cosine marks an image whose
    score rests on other feature maps than is usual for its class. Where the head is linear, FMI^y
    is the same for every image and the agreement 1 by construction. Methods other than A-FMI have
    no value.

    Paper: *A-FMI*, ICLR 2021 submission, Section 4.1 (RQ1). Differs: the paper counts the images
    that the network predicts correctly; an evaluation all of them.
    Cost: FMI once more, and all weights are read once a batch, to know the network again.

    Args:
        prototypes: a file that `afmi.fmi_prototypes` wrote, or its URL, of the same network, layer
            and reference; passwords in the URL are used and not kept. None: nothing is measured, so
            that ``all`` metrics need no file.
        digest: of the file's contents, by which a run knows it again; filled in from the file.

    Raises:
        UsageError: when the file cannot be read, has another digest, or its prototypes are those
            of another network, layer or reference.

    Example:
        >>> import tempfile
        >>> from afmi import fmi_prototypes
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(), torch.nn.Linear(4, 2),
        ... )
        >>> pairs = [(torch.rand(3, 8, 8), number % 2) for number in range(10)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prototypes = fmi_prototypes(model, pairs, folder)
        ...     metric = FMIAgreement(f"{folder}/prototypes.safetensors")
        >>> method, images = AFMI(model), torch.rand(2, 3, 8, 8)
        >>> attribution = method.attribution(images)
        >>> case = Case(method, images, attribution.target, attribution, attribution.logits)
        >>> metric.measure(case)["agreement"].tolist()
        [1.0, 1.0]
    """

    name = "FMI agreement"
    columns = (
        Column(
            "agreement",
            "Agreement",
            "share of pictures whose FMI is nearest to their class's mean FMI",
            higher_is_better=None,
        ),
        Column(
            "cosine",
            "Cosine",
            "cosine between a picture's FMI and its class's mean FMI",
            higher_is_better=None,
        ),
    )
    paper = "A-FMI: Learning Attributions from Deep Networks via Feature Map Importance, 2021"
    needs_class = True

    prototypes: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.prototypes is None:
            return
        digest = hashlib.blake2b(file_content(self.prototypes), digest_size=8).hexdigest()
        if self.digest not in (None, digest):
            raise UsageError(
                f"expected the prototypes {self.digest} in {shown(self.prototypes)!r}, got "
                f"{digest}; give the file that was used before, or leave the digest out"
            )
        object.__setattr__(self, "digest", digest)
        self._loaded  # noqa: B018  # the file may be gone, or on no other machine, when it is used
        # Results name the file, and are for other eyes.
        object.__setattr__(self, "prototypes", shown(self.prototypes))

    @functools.cached_property
    def _loaded(self) -> FMIPrototypes:
        assert self.prototypes is not None
        return FMIPrototypes.load(self.prototypes)

    def measure(self, case: Case) -> dict[str, Tensor]:
        """Return ``agreement``, 1 or 0, and ``cosine``; NaN where the class has no prototype."""
        if self.prototypes is None or not isinstance(case.method, AFMI):
            return {}
        matches = self._loaded.matches(case.method, case.inputs, case.classes)
        agreement = matches.agree.to("cpu", torch.float64)
        return {
            "agreement": agreement.where(matches.cosine.isfinite(), torch.nan),
            "cosine": matches.cosine,
        }

    def work(self, method: Method, inputs: Tensor) -> Work:
        """See `Metric.work`."""
        measured = self.prototypes is not None and isinstance(method, AFMI)
        return method.work(inputs) if measured else Work()
