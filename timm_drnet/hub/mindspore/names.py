"""The DRNet that the paper's authors released, from MindSpore's names to those of ``drnet_resnet50``."""

import re
from collections.abc import Iterator, Mapping

import torch
from timm.models import BasicBlock, Bottleneck, ResNet
from torch import nn

from ...data.pixels import printable

_NUM_RESOLUTIONS = 3
_LEAVES = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean', 'running_var': 'moving_variance'}

# What MindSpore saves of a training beside the network: its progress, the state of the optimizers that ResNets are
# trained with (Momentum, SGD, Adam), and that of loss scaling. The second kind has the name of a weight behind it.
_TRAINING_STATE = {
    'epoch_num', 'step_num', 'global_step', 'learning_rate', 'momentum', 'beta1_power', 'beta2_power',
    'loss_scale', 'scale_sense', 'current_iterator_step', 'last_overflow_iterator_step',
}
_OPTIMIZER_STATE = {'moments', 'accum', 'stat', 'moment1', 'moment2'}


def convert_checkpoints(
        classifier: Mapping[str, torch.Tensor],
        predictor: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Convert the authors' ResNet-50 and its resolution predictor to a state dict of ``drnet_resnet50``.

    The state of a training, such as the optimizer's, is left out.

    Args:
        classifier: Tensors of the classifier's checkpoint, as `read_checkpoint` of the reader returns them.
        predictor: Tensors of the predictor's checkpoint.

    Returns:
        The state dict, in float32. What is float32 already is handed on without a copy, but no two tensors of the
        result share memory.

    Raises:
        ValueError: If a tensor is missing, unknown, of another shape or not of floating point.
    """
    if 'bn1.gamma' in classifier and 'bn1.bn_0.gamma' in predictor:
        raise ValueError('Invalid classifier and predictor: they are swapped. Give the classifier first.')
    num_classes = classifier['end_point.bias'].numel() if 'end_point.bias' in classifier else 1000
    large = ResNet(Bottleneck, (3, 4, 6, 3), num_classes, device='meta')  # type: ignore[arg-type]  # timm: the type
    small = ResNet(BasicBlock, (1, 1, 1, 1), _NUM_RESOLUTIONS, device='meta')  # type: ignore[arg-type]
    state_dict = {
        **_convert(classifier, 'classifier', large, 'backbone', per_resolution=True),
        **_convert(predictor, 'predictor', small, 'predictor', per_resolution=False),
    }
    memories = set()
    for name, tensor in state_dict.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in memories or not tensor.is_contiguous():
            state_dict[name] = tensor.clone(memory_format=torch.contiguous_format)
        memories.add(memory)
    return state_dict


def _convert(
        source: Mapping[str, torch.Tensor],
        argument: str,
        network: nn.Module,
        prefix: str,
        per_resolution: bool,
) -> dict[str, torch.Tensor]:
    """The tensors of one network by our names; they may share memory."""
    names = list(_names(network, per_resolution))
    _check(source, argument, {theirs: shape for _, theirs, shape in names if theirs})
    converted = {}
    for ours, theirs, shape in names:
        # The authors' network does not tell the norms of its shortcuts at which resolution they are used, so that the
        # first one is in use at all of them.
        used = re.sub(r'(down_sample_layer\.1\.bn)_\d', r'\1_0', theirs)
        converted[f'{prefix}.{ours}'] = (
            source[used].detach().float() if used else torch.zeros(shape, dtype=torch.int64))
    return converted


def _names(network: nn.Module, per_resolution: bool) -> Iterator[tuple[str, str, torch.Size]]:
    """Yield our name of every tensor, theirs, and its shape; '' for theirs where MindSpore has no such tensor."""
    for path, module in network.named_modules():
        their_path = path.replace('downsample', 'down_sample_layer').replace('fc', 'end_point')
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if not isinstance(module, nn.BatchNorm2d):
            yield from ((f'{path}.{leaf}', f'{their_path}.{leaf}', value.shape) for leaf, value in tensors)
            continue
        paths = [(path, their_path)]
        if per_resolution:
            paths = [(f'{path}.norms.{j}', f'{their_path}.bn_{j}') for j in range(_NUM_RESOLUTIONS)]
        for ours, theirs in paths:
            for leaf, value in tensors:  # MindSpore does not count the batches that a norm has seen
                yield f'{ours}.{leaf}', f'{theirs}.{_LEAVES[leaf]}' if leaf in _LEAVES else '', value.shape


def _check(source: Mapping[str, torch.Tensor], argument: str, shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a checkpoint that is not exactly the network's, but for the state of a training."""
    missing = [name for name in shapes if name not in source]
    unknown = [name for name in source if name not in shapes and not _is_training_state(name, shapes)]
    misfits = [
        f'{name} of shape {tuple(source[name].shape)} and {source[name].dtype} instead of {tuple(shape)} and float'
        for name, shape in shapes.items()
        if name in source and (source[name].shape != shape or not source[name].is_floating_point())
    ]
    faults = [
        f'{len(names)} {fault} ({", ".join(map(_short, names[:2]))}{", ..." if len(names) > 2 else ""})'
        for fault, names in (('are missing', missing), ('are unknown', unknown), ('do not fit', misfits)) if names
    ]
    if faults:
        raise ValueError(
            f'Invalid {argument}: of its {len(source)} tensors, {" and ".join(faults[:2])}. Give the {argument} of the'
            " authors' DRNet-ResNet-50.")


def _short(text: str) -> str:
    """What a file says, as it can stand in a message: a name may be long, and of any characters."""
    return printable(text if len(text) <= 200 else f'{text[:197]}...')


def _is_training_state(name: str, weights: Mapping[str, torch.Size]) -> bool:
    kind, _, weight = name.partition('.')
    return name in _TRAINING_STATE or (kind in _OPTIMIZER_STATE and weight in weights)
