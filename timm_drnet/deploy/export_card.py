"""The README of an export: what is in the folder, how it was made, and how to run it."""

from typing import Any

_PRECISIONS = {
    'float32': 'Weights and arithmetic are float32.',
    'bf16': 'Weights are stored in bfloat16. OpenVINO computes in it where the processor can, ONNX Runtime in float32.',
    'fp16': 'Weights are stored in float16. OpenVINO computes in it where the processor can, ONNX Runtime in float32.',
    'int8': 'Weights are int8, one scale a channel, and activations uint8, with ranges measured on {images} images, by'
            ' the quantizer of ONNX Runtime.',
}


def export_card(manifest: dict[str, Any]) -> str:
    """Describe an export.

    Args:
        manifest: What it recorded.

    Returns:
        Markdown.
    """
    files = [file for file in (manifest['files']['predictor'], *manifest['files']['branches']) if file]
    quantized = manifest['quantization'] or {}
    lines = [
        f'# {manifest["model"]}', '',
        f'A classifier of {manifest["num_classes"]} classes that picks the resolution of each image'
        f' ({", ".join(map(str, manifest["resolutions"]))} px), exported by timm-drnet'
        f' {manifest["versions"]["timm-drnet"]}. Licence of the weights: {manifest["license"] or "not recorded"}.', '',
        _router(manifest), '', _PRECISIONS[manifest['precision']].format(**quantized), '',
        '| file | images | MB |' + (' in float32 | same answers as float32 |' if quantized else ''),
        '|---|---|---|' + ('---|---|' if quantized else ''),
    ]
    for file in files:
        row = f'| `{file["name"]}` | {file["side"]} px | {file["size"] / 1e6:.1f} |'
        if quantized:
            agreement = file['agreement']
            same = 'not measured' if agreement is None else f'{agreement:.1%} of {quantized["held_out"]} held out'
            row += f' {", ".join(file["float_operators"]) or "nothing"} | {same} |'
        lines.append(row)
    lines += [''] + (
        ['    python onnx_runner.py IMAGE ...', '',
         'takes image files, folders and patterns. It needs ONNX Runtime or OpenVINO (`--runtime` chooses), NumPy and'
         ' Pillow. `manifest.json` has all of this for programs.']
        if manifest['runtime'] == 'onnx' else ['`timm_drnet.ExportedDRNet(FOLDER)` runs it.'])
    return '\n'.join(lines) + '\n'


def _router(manifest: dict[str, Any]) -> str:
    largest = manifest['resolutions'][0]
    if manifest['router'] == 'cascade':
        stops = [
            f'{side} px if its answer is at least {threshold:.4f} sure'
            for side, threshold in zip(manifest['resolutions'][1:], manifest['thresholds'], strict=True)
            if threshold is not None]
        return f'An image stops at {", at ".join([*reversed(stops), f"{largest} px otherwise"])}.'
    if manifest['files']['predictor'] is None:
        return f'Every image runs at {largest} px.'
    return f'A predictor, which sees the image at {manifest["predictor_size"]} px, chooses.'
