"""Weights in oneDNN's own order, put into it once.

oneDNN convolves with weights in blocks whose order depends on the processor and the shapes. PyTorch puts them into it
at every call. That takes as long however few the images are: a fifth to a third of the time of one.
"""

import ctypes
from typing import Any

import torch

_Geometry = tuple[list[int], list[int], list[int], int]


class PackedWeights:
    """One convolution's weights, once in each order that it has been run in.

    An order that does not fit costs far more than none: it is undone number by number. So oneDNN is asked for every
    shape of images, once; nearly always it names the order that it named before. Threads may ask at the same time.
    """

    def __init__(self) -> None:
        self._found: dict[Any, torch.Tensor] = {}

    def find(self, weight: torch.Tensor, geometry: _Geometry, x: torch.Tensor) -> torch.Tensor:
        """The weights to convolve images with.

        Args:
            weight: (C', C / groups, kH, kW), in channels_last.
            geometry: Padding, strides, dilation and groups.
            x: The images, (B, C, H, W), in channels_last.

        Returns:
            What oneDNN's convolution takes for a weight: of oneDNN's layout, or the weight itself where the strides of
            the images do not tell channels_last from contiguous, so that what was asked for may not be what is run.
        """
        if x.is_contiguous():
            return weight
        key = (x.shape, torch.get_num_threads())
        packed = self._found.get(key)
        if packed is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
            content = _content(packed)
            same = (other for other in list(self._found.values()) if torch.equal(_content(other), content))
            packed = self._found[key] = next(same, packed)
        return packed

    def memory(self) -> int:
        """Bytes that they take."""
        return sum(len(_content(packed)) for packed in set(self._found.values()))

    def clear(self) -> None:
        """Forget them, as the weights have changed."""
        self._found.clear()

    def __reduce__(self) -> Any:
        """Leave a copy, or who reads a file, to find their own: oneDNN's layout is not kept."""
        return PackedWeights, ()


def _content(packed: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor of oneDNN's layout."""
    size = torch.ops.mkldnn._nbytes(packed)
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(torch.ops.mkldnn.data_ptr(packed)), dtype=torch.uint8)
