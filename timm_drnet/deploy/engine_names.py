"""Names of engines, the ways to run a DRNet. This imports nothing: the help of the command line has to be quick."""

ONNX_ENGINES = ('onnxruntime', 'onnxruntime-int8', 'openvino', 'openvino-bf16', 'openvino-int8')
"""What runs an export: a runtime each, and the precision if it is not float32."""

ENGINES = ('eager', 'deployed', 'deployed-bf16', 'compile', *ONNX_ENGINES)
"""All of them, as `timm_drnet.evaluate.engines` prepares them."""

BULK_ENGINES = ('deployed', *ONNX_ENGINES)
"""Those of `timm_drnet.bulk`."""
