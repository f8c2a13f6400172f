# Written by `make format` from __init__.py and the modules that it names.
from afmi.metrics.base import Case as Case
from afmi.metrics.base import Metric as Metric
from afmi.metrics.base import MetricsLike as MetricsLike
from afmi.metrics.base import chosen_metrics as chosen_metrics
from afmi.metrics.class_discriminability import ClassDiscriminability as ClassDiscriminability
from afmi.metrics.completeness import Completeness as Completeness
from afmi.metrics.cost import Cost as Cost
from afmi.metrics.deletion import Deletion as Deletion
from afmi.metrics.fmi_agreement import FMIAgreement as FMIAgreement
from afmi.metrics.fmi_prototypes import FMIPrototypes as FMIPrototypes
from afmi.metrics.fragility import Fragility as Fragility
from afmi.metrics.grid_pointing import GridPointing as GridPointing
from afmi.metrics.input_invariance import InputInvariance as InputInvariance
from afmi.metrics.insertion import Insertion as Insertion
from afmi.metrics.parameter_randomisation import ParameterRandomisation as ParameterRandomisation
from afmi.metrics.reference_reliability import ReferenceReliability as ReferenceReliability
from afmi.metrics.value_insertion import ValueInsertion as ValueInsertion
from afmi.specs import Catalogue as Catalogue

CATALOGUE: Catalogue[Metric]
__all__ = [
    "CATALOGUE",
    "Case",
    "ClassDiscriminability",
    "Completeness",
    "Cost",
    "Deletion",
    "FMIAgreement",
    "FMIPrototypes",
    "Fragility",
    "GridPointing",
    "InputInvariance",
    "Insertion",
    "Metric",
    "MetricsLike",
    "ParameterRandomisation",
    "ReferenceReliability",
    "ValueInsertion",
    "chosen_metrics",
]
