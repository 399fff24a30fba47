"""DRNet for timm: CNNs that pick the input resolution of each image. Importing this package registers the models."""

from .cost import CostRow, cost_table
from .drnet import DRNet
from .exported import ExportedDRNet
from .onnx_runner import OnnxDRNet
from .training import flops_loss, install_task_hook, training_loss
from .version import __version__
from .zoo import DEFAULT_MODEL, create_drnet

__all__ = [
    'DEFAULT_MODEL',
    'CostRow',
    'DRNet',
    'ExportedDRNet',
    'OnnxDRNet',
    '__version__',
    'cost_table',
    'create_drnet',
    'flops_loss',
    'training_loss',
]

install_task_hook()
