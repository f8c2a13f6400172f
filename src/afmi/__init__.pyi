# Written by `make format` from __init__.py and the modules that it names.
from afmi import app as app
from afmi import compat as compat
from afmi import datasets as datasets
from afmi import engines as engines
from afmi import errors as errors
from afmi import evaluation as evaluation
from afmi import gradients as gradients
from afmi import methods as methods
from afmi import metrics as metrics
from afmi import report as report
from afmi import targets as targets
from afmi import training as training
from afmi._version import __version__ as __version__
from afmi.api import explain as explain
from afmi.api import explain_classes as explain_classes
from afmi.api import explain_many as explain_many
from afmi.auditing.records import Audit as Audit
from afmi.auditing.run import audit as audit
from afmi.batching import Unexplained as Unexplained
from afmi.comparison import Comparison as Comparison
from afmi.comparison import compare as compare
from afmi.datasets.reading import open_explanations as open_explanations
from afmi.datasets.run import explain_dataset as explain_dataset
from afmi.evaluation.prototypes import fmi_prototypes as fmi_prototypes
from afmi.evaluation.run import evaluate as evaluate
from afmi.explanation import Explanation as Explanation
from afmi.explanation import Gallery as Gallery
from afmi.exporting.writing import export as export
from afmi.methods.feature_maps.afmi import AFMI as AFMI
from afmi.models.load import load_model as load_model
from afmi.network.classifier import Classifier as Classifier
from afmi.network.classifier import find_class as find_class
from afmi.network.layers import find_layer as find_layer
from afmi.network.trace import unchanged as unchanged
from afmi.pictures import figures as figures
from afmi.pictures import images as images
from afmi.pictures import maps as maps
from afmi.pictures import plots as plots
from afmi.pictures import references as references
from afmi.pictures import transforms as transforms
from afmi.pictures import volumes as volumes
from afmi.pictures.finding import find_images as find_images
from afmi.tracking import callbacks as callbacks
from afmi.tracking.logging import log as log
from afmi.training.masking_model import train_masking_model as train_masking_model

__all__ = [
    "AFMI",
    "Audit",
    "Classifier",
    "Comparison",
    "Explanation",
    "Gallery",
    "Unexplained",
    "app",
    "audit",
    "callbacks",
    "compare",
    "compat",
    "datasets",
    "engines",
    "errors",
    "evaluate",
    "evaluation",
    "explain",
    "explain_classes",
    "explain_dataset",
    "explain_many",
    "export",
    "figures",
    "find_class",
    "find_images",
    "find_layer",
    "fmi_prototypes",
    "gradients",
    "images",
    "load_model",
    "log",
    "maps",
    "methods",
    "metrics",
    "open_explanations",
    "plots",
    "references",
    "report",
    "targets",
    "train_masking_model",
    "training",
    "transforms",
    "unchanged",
    "volumes",
]
