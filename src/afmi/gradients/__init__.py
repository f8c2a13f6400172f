"""Modified gradients (Eq. 2–5): derivatives replaced by chords, so that they sum to delta."""

from afmi.gradients.interception import (
    ORDINARY,
    ForwardPass,
    Interception,
    Operation,
    Rule,
    Rules,
    forward_pass,
)
from afmi.gradients.modified import ModifiedGradient, modified_gradient
from afmi.gradients.rules import (
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
