"""Work, how often an image goes through the network: what times and stated costs derive from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """Passes through the network for one image.

    Example:
        >>> str(5 * Work(1, 1) + Work(1))
        '6 forwards + 5 backwards'
        >>> str(Work(1, layer_backwards=1))
        '1 forward + 1 backward behind the layer'
        >>> str(Work(3, layer_forwards=512))
        '3 forwards + 512 forwards behind the layer'

    Attributes:
        forwards: through the whole network.
        backwards: through the whole network.
        layer_backwards: from the logits to a layer's feature maps only, whose time depends on the
            layer: next to nothing behind the last one.
        layer_forwards: from a layer's feature maps to the logits only, likewise.
    """

    forwards: float = 0
    backwards: float = 0
    layer_backwards: float = 0
    layer_forwards: float = 0

    def __add__(self, other: Work) -> Work:
        """Return the work of both."""
        return Work(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.layer_backwards + other.layer_backwards,
            self.layer_forwards + other.layer_forwards,
        )

    def __rmul__(self, times: float) -> Work:
        """Return this work, done so many times."""
        return Work(
            times * self.forwards,
            times * self.backwards,
            times * self.layer_backwards,
            times * self.layer_forwards,
        )

    def __str__(self) -> str:
        """Say it in words."""
        counts = [
            (self.forwards, "forward", ""),
            (self.backwards, "backward", ""),
            (self.layer_backwards, "backward", " behind the layer"),
            (self.layer_forwards, "forward", " behind the layer"),
        ]
        return " + ".join(
            f"{n:,.15g} {what}{'s' * (n != 1)}{where}" for n, what, where in counts if n
        )
