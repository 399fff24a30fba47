"""Serve an exported DRNet over HTTP with Mosec: uploads, and photographs in a folder of the server; no PyTorch.

    timm-drnet export drnet_efficientnet_lite0 exported
    pip install -r examples/serve/requirements.txt
    python examples/serve/server.py exported --photos photos

    curl --data-binary @photo.jpg localhost:8000/classify
    curl --data-binary '{"name": "holidays"}' localhost:8000/photos

Some processes read images, and one runs the model on whatever they have ready: images that come at the same time are
one batch, and what is no image never gets into it. `GET /` answers as soon as all of them are there, `GET /metrics`
counts.
"""

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mosec import Runtime, Server, ValidationError, Worker
from mosec.args import build_arguments_parser

TOPK = 5
"""Labels for each image."""
MOST_FILES = 100
"""Of a folder: all of them are in memory at once."""
MOST_REQUESTS = 32
"""That the model answers together."""
DEFAULTS = {'address': '127.0.0.1', 'timeout': 30_000, 'max_request_size': 32 * 2**20}
"""Of Mosec's options, where its own are others: any machine may ask it, for 3 s and up to 10 MiB."""


def parse_arguments() -> argparse.Namespace:
    """The command line, which every process of the server gets: Mosec's options, and these."""
    parser = build_arguments_parser()
    parser.description = 'Serve an exported DRNet.'
    parser.set_defaults(**DEFAULTS)
    add = parser.add_argument
    add('export', type=Path, help='folder that timm-drnet export has written')
    add('--photos', type=Path, help='folder whose files and folders can be asked for by name')
    add('--threads', type=int, help='CPU threads of the model')
    add('--decoders', type=int, default=2, help='processes that read images, for each address')
    args = parser.parse_args()
    if args.decoders < 1:
        parser.error(f'invalid --decoders {args.decoders}: use at least 1, or 2 to outlive an image that ends one')
    sys.path.append(str(args.export))  # the runner lies beside the model
    return args


class Uploads(Worker):
    """Makes an upload the input of the model."""

    req_mime_type = 'image/*'

    def __init__(self) -> None:
        super().__init__()
        self.export = parse_arguments().export
        import onnx_runner

        self._runner = onnx_runner
        self._preprocessing = onnx_runner.read_manifest(self.export, 'onnx')['preprocessing']
        onnx_runner.ignore_warnings()

    def deserialize(self, data: bytes) -> bytes:
        """Take the body as it is."""
        return data

    def forward(self, data: bytes) -> dict[str, Any]:
        """Prepare the image."""
        found = self.read(io.BytesIO(data))
        if 'error' in found:
            raise ValidationError(f'the upload: {found["error"]}')
        return found

    def read(self, image: Path | io.BytesIO) -> dict[str, Any]:
        """The pixels of an image for the model, or the error that tells why there are none."""
        try:
            return {'pixels': self._runner.prepare(image, self._preprocessing)}
        except self._runner.UnreadableImageError as error:
            return {'error': str(error.__cause__)}  # without the path, which is no business of the client's


class Photos(Uploads):
    """Makes photographs in the folder of the server the input of the model."""

    req_mime_type = 'application/json'
    deserialize = Worker.deserialize

    def __init__(self) -> None:
        super().__init__()
        self._root = parse_arguments().photos.resolve()

    def forward(self, data: Any) -> list[dict[str, Any]]:
        """Prepare a file, or all files of a folder and below."""
        name = data.get('name') if isinstance(data, dict) else None
        if not isinstance(name, str):
            raise ValidationError('send {"name": "FILE OR FOLDER"}, a name below the folder of the server')
        path = find(self._root, name)
        files = [path] if path.is_file() else list(files_below(self._root, path))
        if len(files) > MOST_FILES:
            raise ValidationError(
                f'{name!r} holds more than {MOST_FILES} files: ask for its folders or files one by one, or use'
                ' timm-drnet classify')
        return [{'image': str(file.relative_to(self._root)), **self.read(file)} for file in files]


class Model(Worker):
    """Classifies the images of all requests that wait."""

    def __init__(self) -> None:
        super().__init__()
        args = parse_arguments()
        import onnx_runner

        warnings.filterwarnings('ignore', 'IPC data')  # of the photographs of a folder
        try:
            self._model = onnx_runner.OnnxDRNet(args.export, threads=args.threads)
        except (onnx_runner.InvalidExportError, ImportError, ValueError) as error:
            sys.exit(f'server.py: {error}')

    def forward(self, data: list[Any]) -> list[Any]:
        """Put the answers in the place of the pixels, whether a request has one image or many."""
        images = [image for request in data for image in (request if isinstance(request, list) else [request])]
        readable = [image for image in images if 'pixels' in image]
        answers = self._model.classify([image.pop('pixels') for image in readable], TOPK)
        for image, answer in zip(readable, answers, strict=True):
            image.update(asdict(answer))
        return data


def find(root: Path, name: str) -> Path:
    """What a name below a folder means.

    Args:
        root: The folder, without links in its path.
        name: Of a file or folder below it, relative to it.

    Raises:
        ValidationError: If there is none, or it lies elsewhere; the message does not tell which.
    """
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError):  # not there; or a name that no file can have
        path = root.parent
    inside = path.is_relative_to(root) and not Path(name).is_absolute() and '..' not in Path(name).parts
    if not inside or not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise ValidationError(f'{name!r}: no file or folder of that name below the folder of the server')
    return path


def files_below(root: Path, folder: Path) -> Iterator[Path]:
    """Files of a folder and below, in order, and no more than one too many; no hidden ones, and no links."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith('.') and path.is_file() and not path.is_symlink():
                yield path
                count += 1
                if count > MOST_FILES:
                    return


def main() -> int:
    """Serve.

    Returns:
        0 after SIGTERM or Ctrl+C, 1 if the model or all that read images have ended, 2 for bad input.
    """
    args = parse_arguments()
    try:
        import onnx_runner

        onnx_runner.read_manifest(args.export, 'onnx')
    except ImportError:
        print(f'server.py: {args.export}: no export with a runner; make one by timm-drnet export', file=sys.stderr)
        return 2
    except onnx_runner.InvalidExportError as error:
        print(f'server.py: {error}', file=sys.stderr)
        return 2
    if args.photos is not None and not args.photos.is_dir():
        print(f'server.py: invalid --photos {args.photos}: use a folder', file=sys.stderr)
        return 2
    for name, value in DEFAULTS.items():
        os.environ.setdefault(f'MOSEC_{name.upper()}', str(value))
    try:
        server = Server()
    except RuntimeError as error:  # the port is taken
        print(f'server.py: {error}', file=sys.stderr)
        return 2
    model = Runtime(Model, max_batch_size=MOST_REQUESTS, max_wait_time=5)
    routes = {'/classify': [Runtime(Uploads, num=args.decoders), model]}
    if args.photos is not None:
        routes['/photos'] = [Runtime(Photos, num=args.decoders), model]
    server.register_runtime(routes)
    heard, told = os.pipe()
    os.set_blocking(heard, False)
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)  # Mosec ends in the same way after a signal and after a failure
    server.run()
    try:
        return 0 if os.read(heard, 1) else 1
    except BlockingIOError:
        return 1


if __name__ == '__main__':
    sys.exit(main())
