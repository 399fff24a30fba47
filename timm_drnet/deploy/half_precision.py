"""Half precision: an exported program whose weights take two bytes each.

The weights are widened again where they are used, so every runtime runs the file; in bfloat16 or float16 it computes
only if it can. OpenVINO does, where the processor has such arithmetic; ONNX Runtime computes in float32 on a CPU.
"""

import torch

_SMALLEST = 64
"""Numbers in a tensor that is worth it."""


def store_half(content: bytes, precision: str) -> bytes:
    """Store the weights of a program in half precision.

    Args:
        content: ONNX, in float32.
        precision: ``bf16`` or ``fp16``.

    Returns:
        ONNX.
    """
    import onnx

    dtype, code = {
        'bf16': (torch.bfloat16, onnx.TensorProto.BFLOAT16), 'fp16': (torch.float16, onnx.TensorProto.FLOAT16),
    }[precision]
    model = onnx.load_from_string(content)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or values.size < _SMALLEST:
            continue
        raw = torch.from_numpy(values.copy()).to(dtype).view(torch.int16).numpy().tobytes()
        name = tensor.name
        tensor.CopyFrom(onnx.helper.make_tensor(f'{name}_{precision}', code, values.shape, raw, raw=True))
        casts.append(onnx.helper.make_node('Cast', [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString(deterministic=True))
