# Written by `make format` from __init__.py and the modules that it names.
from afmi.methods.base import Attribution as Attribution
from afmi.methods.base import BlankMapWarning as BlankMapWarning
from afmi.methods.base import LayerMethod as LayerMethod
from afmi.methods.base import Method as Method
from afmi.methods.base import MethodsLike as MethodsLike
from afmi.methods.base import chosen_methods as chosen_methods
from afmi.methods.feature_maps.ablation_cam import AblationCAM as AblationCAM
from afmi.methods.feature_maps.afmi import AFMI as AFMI
from afmi.methods.feature_maps.cam import CAM as CAM
from afmi.methods.feature_maps.eigen_cam import EigenCAM as EigenCAM
from afmi.methods.feature_maps.full_grad import FullGrad as FullGrad
from afmi.methods.feature_maps.grad_cam import GradCAM as GradCAM
from afmi.methods.feature_maps.grad_cam_plus_plus import GradCAMPlusPlus as GradCAMPlusPlus
from afmi.methods.feature_maps.hires_cam import HiResCAM as HiResCAM
from afmi.methods.feature_maps.layer_cam import LayerCAM as LayerCAM
from afmi.methods.feature_maps.multiscale_afmi import MultiscaleAFMI as MultiscaleAFMI
from afmi.methods.feature_maps.score_cam import ScoreCAM as ScoreCAM
from afmi.methods.feature_maps.xgrad_cam import XGradCAM as XGradCAM
from afmi.methods.pixels.deconvnet import DeconvNet as DeconvNet
from afmi.methods.pixels.deeplift import DeepLIFT as DeepLIFT
from afmi.methods.pixels.gradient import Gradient as Gradient
from afmi.methods.pixels.gradient_shap import GradientSHAP as GradientSHAP
from afmi.methods.pixels.guided_backprop import GuidedBackprop as GuidedBackprop
from afmi.methods.pixels.input_x_gradient import InputXGradient as InputXGradient
from afmi.methods.pixels.integrated_gradients import IntegratedGradients as IntegratedGradients
from afmi.methods.pixels.kernel_shap import KernelSHAP as KernelSHAP
from afmi.methods.pixels.lrp import LRP as LRP
from afmi.methods.pixels.smoothgrad import SmoothGrad as SmoothGrad
from afmi.methods.random import Random as Random
from afmi.methods.regions.extremal_perturbation import ExtremalPerturbation as ExtremalPerturbation
from afmi.methods.regions.lime import LIME as LIME
from afmi.methods.regions.masking_model import MaskingModel as MaskingModel
from afmi.methods.regions.meaningful_perturbation import (
    MeaningfulPerturbation as MeaningfulPerturbation,
)
from afmi.methods.regions.occlusion import Occlusion as Occlusion
from afmi.methods.regions.prediction_difference import PredictionDifference as PredictionDifference
from afmi.methods.regions.rise import RISE as RISE
from afmi.methods.regions.xrai import XRAI as XRAI
from afmi.specs import Catalogue as Catalogue

CATALOGUE: Catalogue[Method]
__all__ = [
    "AFMI",
    "CAM",
    "CATALOGUE",
    "LIME",
    "LRP",
    "RISE",
    "XRAI",
    "AblationCAM",
    "Attribution",
    "BlankMapWarning",
    "DeconvNet",
    "DeepLIFT",
    "EigenCAM",
    "ExtremalPerturbation",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientSHAP",
    "GuidedBackprop",
    "HiResCAM",
    "InputXGradient",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "LayerMethod",
    "MaskingModel",
    "MeaningfulPerturbation",
    "Method",
    "MethodsLike",
    "MultiscaleAFMI",
    "Occlusion",
    "PredictionDifference",
    "Random",
    "ScoreCAM",
    "SmoothGrad",
    "XGradCAM",
    "chosen_methods",
]
