"""Runtimes: an exported program in ONNX Runtime or in OpenVINO, behind one call.

``timm-drnet export`` puts a copy of this file beside the models that it writes, so it imports nothing of the package.
"""

import functools
import importlib.util
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Provider: TypeAlias = str | tuple[str, dict[str, Any]]

RUNTIMES = ('onnxruntime', 'openvino')

_HINTS = {'float32': 'f32', 'bf16': 'bf16', 'fp16': 'f16', 'int8': 'f32'}
"""What OpenVINO computes in. Left to itself it takes bfloat16 where the processor has it."""


class Program:
    """One file of an export, ready to run; threads may share it.

    Args:
        run: From (B, C, r, r) to (B, outputs).
        shape: Of the images and of the outputs, without the batch.
    """

    def __init__(self, run: Callable[[Array], Array], shape: tuple[list[int], list[int]]) -> None:
        self._run = run
        self.shape = shape

    def __call__(self, x: Array) -> Array:
        """The outputs, (B, outputs), for images, (B, C, r, r)."""
        return self._run(x)


def pick_runtime(wanted: str | None, precision: str, providers: Sequence[Provider] | None = None) -> str:
    """Choose among the installed runtimes.

    Args:
        wanted: One of `RUNTIMES`, or None for what is installed: of both, ONNX Runtime for float32 and OpenVINO, which
            is faster there, for other precisions.
        precision: Of the export.
        providers: ONNX Runtime's execution providers, if given.

    Returns:
        The name of the runtime.

    Raises:
        ImportError: If it is not installed.
        ValueError: If there is no such runtime, or providers are given for another one than ONNX Runtime.
    """
    if wanted not in (None, *RUNTIMES):
        raise ValueError(f'Invalid runtime {wanted!r}: use one of {", ".join(map(repr, RUNTIMES))}, or None.')
    if providers is not None:
        if wanted == 'openvino':
            raise ValueError('Invalid providers: OpenVINO has none; leave them out, or use runtime onnxruntime.')
        wanted = 'onnxruntime'
    order = RUNTIMES if precision == 'float32' else RUNTIMES[::-1]
    for runtime in order if wanted is None else (wanted,):
        if is_installed(runtime):
            return runtime
    if wanted is None:
        raise ImportError(
            'OnnxDRNet needs ONNX Runtime or OpenVINO: pip install "timm-drnet[onnx]" or "timm-drnet[openvino]", or'
            ' without PyTorch: pip install onnxruntime, or openvino')
    extra = {'onnxruntime': 'onnx', 'openvino': 'openvino'}[wanted]
    raise ImportError(
        f'{wanted} is not installed: pip install "timm-drnet[{extra}]", or without PyTorch: pip install {wanted}')


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be imported."""
    try:
        return importlib.util.find_spec(runtime) is not None
    except ValueError:  # marked as missing
        return False


def load(
        content: bytes,
        runtime: str,
        precision: str = 'float32',
        threads: int | None = None,
        providers: Sequence[Provider] | None = None,
) -> Program:
    """Load an ONNX file.

    Args:
        content: Of the file.
        runtime: One of `RUNTIMES`.
        precision: Of the export: OpenVINO computes in it.
        threads: CPU threads of one call, or None for the runtime's own choice.
        providers: Of ONNX Runtime, or None for the CPU.

    Returns:
        The program.

    Raises:
        ValueError: If a provider does not start.
        Exception: Of many types, if the runtime cannot load the file.
    """
    if runtime == 'openvino':
        return _load_openvino(content, precision, threads)
    return _load_onnxruntime(content, threads, ['CPUExecutionProvider'] if providers is None else list(providers))


def check_providers(providers: Sequence[Provider]) -> None:
    """Make sure that ONNX Runtime has these execution providers, as it would fall back in silence.

    Raises:
        ValueError: If it has not.
    """
    import onnxruntime

    names = provider_names(providers)
    available = onnxruntime.get_available_providers()
    if not names or not set(names) <= set(available):
        raise ValueError(f'Invalid providers {names}: this ONNX Runtime has {", ".join(available)}.')


def provider_names(providers: Sequence[Provider]) -> list[str]:
    """The names alone, without options."""
    return [provider if isinstance(provider, str) else provider[0] for provider in providers]


def version(runtime: str) -> str:
    """The runtime with its version, for a message."""
    if runtime == 'openvino':
        import openvino

        return f'OpenVINO {openvino.__version__}'
    import onnxruntime

    return f'ONNX Runtime {onnxruntime.__version__}'


def _load_onnxruntime(content: bytes, threads: int | None, providers: list[Provider]) -> Program:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Each model has threads of its own; those of one that is done would hold cores that the next one needs.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    names = provider_names(providers)
    if names[0] not in session.get_providers():  # available, but it did not start
        raise ValueError(f'Invalid providers {names}: {names[0]} does not start here; see what ONNX Runtime logged.')
    (given,), (result,) = session.get_inputs(), session.get_outputs()

    def run(x: Array) -> Array:
        return np.asarray(session.run(None, {given.name: x})[0])

    return Program(run, (list(given.shape[1:]), list(result.shape[1:])))


@functools.cache
def _openvino_core() -> Any:
    """One for the whole process, never given up.

    On processors with AMX the first one gives its thread a larger stack for signals. The last one takes it away, but in
    the thread that it ends in: if that is another one, the next signal to the first thread kills the process.
    """
    import openvino

    return openvino.Core()


def _load_openvino(content: bytes, precision: str, threads: int | None) -> Program:
    options: dict[str, Any] = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': _HINTS[precision]}
    if threads is not None:
        options['INFERENCE_NUM_THREADS'] = threads
    core = _openvino_core()
    compiled = core.compile_model(core.read_model(content), 'CPU', options)
    requests = threading.local()  # one can serve one thread at a time

    def run(x: Array) -> Array:
        if not hasattr(requests, 'own'):
            requests.own = compiled.create_infer_request()
        # Neither side is copied, which takes as long as a small network; but the next call writes over the outputs.
        return np.array(requests.own.infer([np.ascontiguousarray(x)], share_inputs=True, share_outputs=True)[0])

    shapes = [
        [dimension.get_length() for dimension in list(port.get_partial_shape())[1:]]
        for port in (compiled.input(0), compiled.output(0))]
    return Program(run, (shapes[0], shapes[1]))
