"""Eq. 2–5, one file for each family of operations, and the table that users add to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from afmi.gradients.interception import Handler, Rules
from afmi.gradients.rules import (
    composed,
    elementwise,
    extremes,
    lengths,
    linear,
    normalisation,
    path_integral,
    pooling,
    products,
    recurrent,
    softmax,
)

__all__ = [
    "MODIFIED_GRADIENT",
    "register_composition",
    "register_elementwise",
    "register_linear",
    "register_path_integral",
    "register_rule",
]

_table: dict[str, Handler] = {
    **linear.RULES,
    **elementwise.RULES,
    **pooling.RULES,
    **products.RULES,
    **softmax.RULES,
    **normalisation.RULES,
    **extremes.RULES,
    **composed.RULES,
    **lengths.RULES,
    **path_integral.RULES,
    **recurrent.RULES,
}

MODIFIED_GRADIENT = Rules(_table, extensible=True)
"""The rules of the modified gradient: an operation without one raises."""


def register_rule(name: str, rule: Handler) -> None:
    """Use ``rule`` for the operation called ``name`` from now on, in this process.

    Args:
        name: the operation's name, as the error that asked for a rule gives it.
        rule: an `afmi.gradients.Rule`, or a function of the `Interception` and the `Operation` that
            makes the call and returns its output, with a backward pass for which Σ m·Δin = Δout.
    """
    _table[name] = rule


def register_elementwise(name: str, *, kinked: bool = False) -> None:
    """Use the chord (Eq. 2) for an operation that maps each number by itself.

    Args:
        name: the operation's name.
        kinked: whether its derivative jumps somewhere.

    Example:
        >>> register_elementwise("erf")
    """
    register_rule(name, elementwise.Chord(kinked=kinked))


def register_linear(name: str) -> None:
    """Keep the ordinary derivative of an operation that is linear or affine in its operands."""
    register_rule(name, linear.keep)


def register_composition(name: str, formula: Callable[..., Any]) -> None:
    """Use ``formula``, plain PyTorch code with the operation's signature, in place of the call.

    Args:
        name: the operation's name.
        formula: gives what the operation gives, by operations that have rules.

    Example:
        >>> register_composition("logaddexp2", lambda x, y: (x.exp2() + y.exp2()).log2())
    """
    register_rule(name, composed.composed(formula))


def register_path_integral(name: str, *, order: int = 16) -> None:
    """Use the mean derivative along the straight line for a smooth operation that has no rule.

    It is found by quadrature and checked at every call: a `CompletenessWarning` says where the
    operation bends too sharply for ``order``.

    Args:
        name: the operation's name.
        order: the number of Gauss–Legendre nodes.

    Example:
        >>> register_path_integral("xlogy", order=32)
    """
    register_rule(name, path_integral.PathIntegral(order))
