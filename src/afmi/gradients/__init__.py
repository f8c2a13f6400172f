"""Modified gradients (Eq. 2–5): derivatives replaced by chords, so that they sum to delta."""

from afmi.gradients.forward_pass import ForwardPass, UnseenError, forward_pass, layer_pass
from afmi.gradients.interception import ORDINARY, BackwardState, Handler, Interception, Rules
from afmi.gradients.modified import ModifiedGradient, modified_gradient
from afmi.gradients.operation import Operation
from afmi.gradients.rule import Factors, Rule, Tensors
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
    "BackwardState",
    "Factors",
    "ForwardPass",
    "Handler",
    "Interception",
    "ModifiedGradient",
    "Operation",
    "Rule",
    "Rules",
    "Tensors",
    "UnseenError",
    "forward_pass",
    "layer_pass",
    "modified_gradient",
    "register_composition",
    "register_elementwise",
    "register_linear",
    "register_path_integral",
    "register_rule",
]
