"""Modified gradients (Eq. 2–5): derivatives replaced by chords, so that they sum to delta."""

from afmi.modified_gradient.engine import ModifiedGradient, modified_gradient
from afmi.modified_gradient.interception import (
    ORDINARY,
    ForwardPass,
    Interception,
    Operation,
    Rule,
    Rules,
    forward_pass,
)
from afmi.modified_gradient.rules import (
    MODIFIED_GRADIENT,
    register_composition,
    register_elementwise,
    register_linear,
    register_path_integral,
    register_rule,
)

__all__ = [
    "MODIFIED_GRADIENT",
    "ORDINARY",
    "ForwardPass",
    "Interception",
    "ModifiedGradient",
    "Operation",
    "Rule",
    "Rules",
    "forward_pass",
    "modified_gradient",
    "register_composition",
    "register_elementwise",
    "register_linear",
    "register_path_integral",
    "register_rule",
]
