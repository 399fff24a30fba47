"""``timm-drnet demo``: a page to try a model on, in the browser."""

import argparse
import importlib.util
import socket
import sys
import threading
from pathlib import Path

from ..data.files import find_images
from ..demo.network import Network
from ..demo.page import build_page, launch_options
from .common import check_labels, load_model, pick_device, read_labels
from .output import UserError, show, tell

_SAMPLES = 'examples/photos'


def run(args: argparse.Namespace) -> int:
    """Serve the page until somebody ends it."""
    if importlib.util.find_spec('gradio') is None:
        raise UserError('the page needs Gradio: pip install "timm-drnet[demo]"')
    _check_address(args.host, args.port)
    samples = _find_samples(args.samples)
    labels = read_labels(args.labels) if args.labels else None
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs).to(device)
    check_labels(args.labels, labels, model)
    try:
        network = Network(model, labels)
    except ValueError as error:
        raise UserError(f'model {args.model!r}: {error}') from error
    try:
        page = build_page(network, samples)
    except ValueError as error:
        raise UserError(f'--samples {error}') from error
    _, local, public = page.launch(
        server_name=args.host, server_port=args.port, share=args.share, prevent_thread_lock=True, quiet=True,
        inbrowser=args.browser and sys.stdout.isatty(), **launch_options(samples))
    try:
        show(f'{args.model} at {public or local} (Ctrl+C ends it)')
        if args.share and public is None:
            tell('demo', '--share: no public address, as the service for it could not be reached')
        threading.Event().wait()
    except KeyboardInterrupt:  # the way to end it
        pass
    finally:
        page.close(verbose=False)
    return 0


def _check_address(host: str, port: int | None) -> None:
    """Refuse what cannot be served at: Gradio would leave it to a thread, which tells in many lines."""
    option = f'--host {host}' if port is None else f'--host {host} --port {port}'
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(' (while')[0]
        raise UserError(f'{option}: cannot serve there, {reason}; use another') from error


def _find_samples(given: list[str] | None) -> list[Path]:
    if given is None:  # in a clone; the package itself brings none
        return find_images([_SAMPLES]) if Path(_SAMPLES).is_dir() else []
    try:
        return find_images(given)
    except OSError as error:
        raise UserError(f'--samples {error}') from error
