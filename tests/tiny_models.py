"""What tests make tiny models of."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

# name: (arguments that make it small, resolutions); HRNet and DLA need multiples of 32
FAMILIES = {
    'resnet18d': ({'channels': (16, 24, 32, 40), 'stem_width': 8}, (64, 48, 32)),
    'res2net50_26w_4s': ({'layers': (1, 1, 1, 1)}, (64, 48, 32)),
    'regnety_002': ({}, (64, 48, 32)),
    'efficientnet_lite0': ({}, (64, 48, 32)),
    'mobilenetv2_035': ({}, (64, 56, 48)),
    'mobilenetv3_small_050': ({}, (64, 48, 32)),
    'lcnet_035': ({}, (64, 48, 32)),
    'densenet121': ({'growth_rate': 8, 'block_config': (2, 2, 2, 2)}, (64, 48, 32)),
    'vgg11_bn': ({'mlp_ratio': 0.02}, (64, 48, 32)),
    'ghostnet_050': ({}, (64, 48, 32)),
    'hrnet_w18_small': ({}, (96, 64, 32)),
    'dla46_c': ({}, (96, 64, 32)),
    'repvgg_a0': ({}, (64, 48, 32)),
    'rexnet_100': ({}, (64, 48, 32)),
}


def shake(model, seed=0):
    """Give every norm of a model random weights and statistics, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return model
