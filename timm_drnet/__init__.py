"""DRNet for timm: CNNs that pick the input resolution of each image. Importing this package registers the models."""

from .adaptation.adapt import adapt
from .cost.flops import CostRow, cost_table
from .cost.latency import LatencyRow, latency_table
from .deploy.exported import ExportedDRNet
from .deploy.onnx_runner import OnnxDRNet
from .hub.zoo import DEFAULT_MODEL, create_drnet
from .model import DRNet
from .train.loss import flops_loss, install_task_hook, training_loss
from .train.predictor import train_predictor
from .train.resume import install_resume_check
from .version import __version__

__all__ = [
    'DEFAULT_MODEL',
    'CostRow',
    'DRNet',
    'ExportedDRNet',
    'LatencyRow',
    'OnnxDRNet',
    '__version__',
    'adapt',
    'cost_table',
    'create_drnet',
    'flops_loss',
    'latency_table',
    'train_predictor',
    'training_loss',
]

install_task_hook()
install_resume_check()
