"""The page of ``timm-drnet demo`` as a Hugging Face Space, with the model that ships inside the package."""

from pathlib import Path

import timm

import timm_drnet
from timm_drnet.data.files import find_images
from timm_drnet.demo.network import Network
from timm_drnet.demo.page import build_page, launch_options

HERE = Path(__file__).parent
# The Space's own copy; in a clone, those of the repository.
PHOTOS = next((folder for folder in (HERE / 'photos', HERE.parent / 'photos') if folder.is_dir()), None)

samples = find_images([PHOTOS]) if PHOTOS else []
model = timm.create_model(timm_drnet.DEFAULT_MODEL, pretrained=True).eval()
demo = build_page(Network(model), samples)

if __name__ == '__main__':
    demo.launch(**launch_options(samples))
