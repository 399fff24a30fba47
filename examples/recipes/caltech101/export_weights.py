"""Turn a checkpoint of train.py into the safetensors file that ships inside the package.

Convolutions and the classifier are stored in half precision, which halves the download; norms, which hold statistics,
and biases stay in single precision.

    python export_weights.py output/3-joint/last.pth.tar drnet_resnet18d_050.caltech101.safetensors
"""

import argparse

import torch
from safetensors.torch import save_file
from timm.models import load_state_dict


def main() -> None:
    """Convert one checkpoint."""
    parser = argparse.ArgumentParser(description='Turn a checkpoint of train.py into a small safetensors file.')
    parser.add_argument('checkpoint')
    parser.add_argument('output')
    args = parser.parse_args()
    state = load_state_dict(args.checkpoint)
    small = {
        name: (value.half() if value.ndim > 1 and value.is_floating_point() else value).contiguous()
        for name, value in state.items()
    }
    if not all(torch.isfinite(value).all() for value in small.values()):
        raise SystemExit(f'{args.checkpoint}: a weight is not finite in half precision; nothing was written')
    save_file(small, args.output, metadata={'format': 'pt'})


if __name__ == '__main__':
    main()
