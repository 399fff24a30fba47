"""PyTorch's own SyncBatchNorm on CPUs, where it lacks five small kernels and refuses the device.

What is to be tested, who talks to whom and when, is PyTorch's own code and runs as it is; the five are written out
here from what a batch norm is. Like those for CUDA, they take statistics of nothing for zeros.
"""

import torch
from torch.nn.modules import batchnorm
from torch.nn.parallel import DistributedDataParallel


def _channels(x):
    """(B, C, H, W) to (C, B * H * W), in float32 if in half precision."""
    return x.transpose(0, 1).flatten(1).to(torch.promote_types(x.dtype, torch.float32))


def _stats(x, eps):
    values = _channels(x)
    return values.mean(dim=1), (values.var(dim=1, correction=0) + eps).rsqrt()


def _gather_stats_with_counts(x, means, invstds, running_mean, running_var, momentum, eps, counts):
    counts = counts[:, None]
    total = counts.sum()
    mean = (means * counts).sum(dim=0) / total.clamp(min=1)
    squares = ((invstds ** -2 - eps + means ** 2) * counts).sum(dim=0)
    deviations = squares - total * mean ** 2
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(deviations / (total - 1), momentum)
    return mean, (deviations / total + eps).rsqrt()


def _elemt(x, weight, bias, mean, invstd, eps):
    scale = weight * invstd
    return (x * scale[:, None, None] + (bias - mean * scale)[:, None, None]).to(x.dtype)


def _backward_reduce(grad, x, mean, invstd, weight, *wanted):
    dy, xmu = _channels(grad), _channels(x) - mean[:, None]
    sum_dy, sum_dy_xmu = dy.sum(dim=1), (dy * xmu).sum(dim=1)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy


def _backward_elemt(grad, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
    total = counts.sum()
    dy, xmu = _channels(grad), _channels(x) - mean[:, None]
    dx = dy - (sum_dy / total)[:, None] - xmu * (invstd ** 2 * sum_dy_xmu / total)[:, None]
    dx = dx * (invstd * weight)[:, None]
    return dx.unflatten(1, (x.shape[0], *x.shape[2:])).transpose(0, 1).to(x.dtype)


class _Changed:
    """A module, some names aside."""

    def __init__(self, module, **names):
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def allow_sync_norms_on_cpu():
    """Change this process for good: SyncBatchNorm runs on CPU tensors."""
    torch.batch_norm_stats = _stats
    torch.batch_norm_gather_stats_with_counts = _gather_stats_with_counts
    torch.batch_norm_elemt = _elemt
    torch.batch_norm_backward_reduce = _backward_reduce
    torch.batch_norm_backward_elemt = _backward_elemt
    # SyncBatchNorm takes tensors of the backend that anyone may register; let that be the CPU.
    batchnorm.torch = _Changed(torch, _C=_Changed(torch._C, _get_privateuse1_backend_name=lambda: 'cpu'))
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None  # refuses CPUs, no more
