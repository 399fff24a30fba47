"""DRNet for timm: CNNs that pick the input resolution of each image. Importing this package registers the models."""

from .calibration import calibrate_norms
from .cost import CostRow, cost_table
from .drnet import DRNet
from .exported import ExportedDRNet
from .latency import LatencyRow, latency_table
from .onnx_runner import OnnxDRNet
from .predictor_training import train_predictor
from .resume import install_resume_check
from .training import flops_loss, install_task_hook, training_loss
from .version import __version__
from .zoo import DEFAULT_MODEL, create_drnet

__all__ = [
    'DEFAULT_MODEL',
    'CostRow',
    'DRNet',
    'ExportedDRNet',
    'LatencyRow',
    'OnnxDRNet',
    '__version__',
    'calibrate_norms',
    'cost_table',
    'create_drnet',
    'flops_loss',
    'latency_table',
    'train_predictor',
    'training_loss',
]

install_task_hook()
install_resume_check()
