"""Quantization: an exported float32 program in int8, calibrated on images without labels.

Weights are int8, one scale for each channel; activations are uint8, with ranges measured on the images. ONNX Runtime's
quantizer writes them as QuantizeLinear and DequantizeLinear, which ONNX Runtime and OpenVINO both run in int8. What
NNCF writes instead is no more accurate, and ONNX Runtime runs it slower than float32.

An operator that loses accuracy stays in float32. How much is lost is measured on images that were held out, as the
Kullback-Leibler divergence of the answers from those in float32.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .arrays import Array
from .runtimes import load

_WEIGHED = ('Conv', 'Gemm', 'MatMul', 'Add')
"""Operators that may stay in float32 alone."""
_TYPES = (*_WEIGHED, 'Clip', 'Relu', 'MaxPool', 'GlobalAveragePool', 'Concat')
"""What is quantized; the rest, such as an attention's product, loses more than it saves."""
_NEGLIGIBLE = 0.001
"""Nats that an operator alone may lose on average."""
_MOST_IN_FLOAT = 8
_TO_RANK = 32
"""Images on which operators are looked at one by one."""
_BATCH = 16


@dataclass(frozen=True)
class Quantized:
    """A program in int8."""

    content: bytes
    """ONNX."""
    float_operators: tuple[str, ...]
    """Those that stay in float32."""
    divergence: float | None
    """Of its answers from those in float32, in nats, on average over the images held out; None without such."""
    agreement: float | None
    """Fraction of the images held out whose answer is that of float32."""


def quantize(content: bytes, images: Array, held_out: Array, scratch: Path) -> Quantized:
    """Quantize a program.

    Args:
        content: ONNX, from (B, C, r, r) to (B, outputs).
        images: To measure ranges on, (N, C, r, r).
        held_out: To measure losses on, (N, C, r, r); where there is none, all operators are quantized.
        scratch: An empty folder for intermediate files.

    Returns:
        The program in int8.
    """
    quantizer = _Quantizer(content, images, scratch)
    everything = quantizer.build()
    if not len(held_out):
        return Quantized(everything, (), None, None)
    expected = _outputs(content, held_out)

    def loss(program: bytes, images: int = len(held_out)) -> float:
        return _divergence(_outputs(program, held_out[:images]), expected[:images])

    best, least, kept = everything, loss(everything), ()
    if least > _NEGLIGIBLE:
        alone = {name: loss(quantizer.build(only=[name]), _TO_RANK) for name in quantizer.operators}
        losing = sorted((name for name in alone if alone[name] > _NEGLIGIBLE), key=lambda name: -alone[name])
        for n in range(1, min(len(losing), _MOST_IN_FLOAT) + 1):
            # How runtimes fuse what is left can make it worse than before, so each is measured.
            program = quantizer.build(without=losing[:n])
            now = loss(program)
            if now < least:
                best, least, kept = program, now, tuple(losing[:n])
    agreement = float((_outputs(best, held_out).argmax(axis=1) == expected.argmax(axis=1)).mean())
    return Quantized(best, kept, least, agreement)


class _Quantizer:
    """ONNX Runtime's quantizer for one program, whose ranges are measured once."""

    def __init__(self, content: bytes, images: Array, scratch: Path) -> None:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        float_path, prepared = scratch / 'float.onnx', scratch / 'prepared.onnx'
        float_path.write_bytes(content)
        quant_pre_process(str(float_path), str(prepared), skip_symbolic_shape=True)  # that would need SymPy
        calibrator = create_calibrator(
            prepared, list(_TYPES), str(scratch / 'augmented.onnx'), CalibrationMethod.MinMax,
            providers=['CPUExecutionProvider'])
        self._model = onnx.load(prepared)
        calibrator.collect_data(_Reader(self._model.graph.input[0].name, images))
        self._ranges = calibrator.compute_data()
        self.operators = [node.name for node in self._model.graph.node if node.op_type in _WEIGHED]

    def build(self, only: Collection[str] = (), without: Collection[str] = ()) -> bytes:
        """The program with some operators, or all but some, in int8."""
        import onnx
        from onnxruntime.quantization import QDQQuantizer, QuantType

        model = onnx.ModelProto()
        model.CopyFrom(self._model)  # the quantizer changes it
        quantizer = QDQQuantizer(
            model, True, False, QuantType.QInt8, QuantType.QUInt8, self._ranges, list(only), list(without),
            list(_TYPES), {})
        quantizer.quantize_model()
        return bytes(quantizer.model.model.SerializeToString(deterministic=True))


class _Reader:
    """Gives images to the calibrator."""

    def __init__(self, name: str, images: Array) -> None:
        self._batches: Iterator[Array] = iter(np.array_split(images, -(-len(images) // _BATCH)))
        self._name = name

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def _outputs(program: bytes, images: Array) -> Array:
    run = load(program, 'onnxruntime')
    return np.concatenate([run(part) for part in np.array_split(images, -(-len(images) // _BATCH))])


def _divergence(outputs: Array, expected: Array) -> float:
    log_p, log_q = _log_softmax(expected), _log_softmax(outputs)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]
