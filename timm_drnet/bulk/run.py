"""Run: a bulk run from its inputs to its shards, on Ray Data.

Units of work stream through a pool of workers that hold one model each. Ray starts a worker anew that has died, and
gives it the units again that it had not answered. The answers are small, so one process writes all shards: none is ever
written by two.
"""

import copy
import logging
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..data.labels import labels_for
from ..data.pixels import REDUCING_GAP, first_line
from ..data.reading import image_loader
from .assembly import COLUMNS, Assembly, Meaning
from .attempts import Attempts
from .cluster import Plan, import_ray, plan_workers, ray_cluster
from .engine import check_engine, engine_files
from .listing import Listing, list_inputs
from .manifest import make_manifest, output_of
from .progress import Progress
from .remote import is_address, local_path
from .report import BulkReport, report_on
from .shards import ShardFolder
from .tables import carried_columns
from .workers import ClassifyingWorker, DecodedClassifyingWorker, DecodingWorker, work_unit

_BATCHES = 8  # in a unit of work: enough to fill those of every resolution


def classify_bulk(
        model: DRNet,
        inputs: Sequence[str | Path],
        output: str | os.PathLike[str],
        labels: Sequence[str] | None = None,
        topk: int = 1,
        image_column: str = 'image',
        batch_size: int = 32,
        shard_size: int = 1000,
        workers: int | None = None,
        num_gpus: float | None = None,
        decoders: int | None = None,
        address: str | None = None,
        progress: bool = False,
        columns: Sequence[str] | None = None,
        engine: str = 'deployed',
        reducing_gap: float | None = REDUCING_GAP,
) -> BulkReport:
    """Classify any number of images into a folder of Parquet files, by several processes or machines.

    Needs Ray Data. Each file, a shard, is there as a whole or not at all; called again with the same arguments, after
    whatever has happened, it makes only those that are missing. Workers that die are replaced. Every image has exactly
    one row, in the order of `list_inputs`: its ``path`` and ``row``; ``label``, ``class_index``, ``probability``,
    ``resolution`` and ``gflops``; and ``error``, which is null unless the image is unreadable. With ``topk`` above 1
    there are ``top_labels``, ``top_class_indices`` and ``top_probabilities``, too. Other columns of Parquet files, such
    as an ``id``, go with their images into the output.

    Args:
        model: A DRNet; it does not change.
        inputs: Folders, Parquet files, image files and patterns, or addresses of such, see `list_inputs`. On a cluster,
            every machine must find the files under the same paths.
        output: The folder for the shards, on this machine: a new one, or that of an earlier run.
        labels: One for each class, or None for `class_labels`.
        topk: Number of labels for each image; all labels if there are fewer.
        image_column: Column of Parquet files that holds the images.
        batch_size: Images that the predictor, or a branch, runs on at once.
        shard_size: Images in a shard. A run that is killed loses what it has of shards that are not complete.
        workers: Processes that classify; None for one for each core, or accelerator.
        num_gpus: Accelerators of each worker; None for 1 if there are any.
        decoders: Processes that only decode images; with 0 the workers do so. None for 0 without accelerators, and with
            them for the cores that workers leave.
        address: Of a Ray cluster to join. None for this machine alone.
        progress: Whether to show on stderr how far the run is: a bar on a terminal, else a line now and then.
        columns: Columns of Parquet files that are carried over into the output; None for all but the images.
        engine: What runs the model: ``deployed``, or one of ONNX Runtime and OpenVINO on CPUs, `BULK_ENGINES`
            of `timm_drnet.deploy.engine_names`. int8 is calibrated with some of the images.
        reducing_gap: How many times the size that the model needs a JPEG file is decoded at least; None to decode all.

    Returns:
        What the shards say in all.

    Raises:
        ExportError: If the model does not export for the engine.
        ImportError: If Ray Data, what runs the engine, or what reads an address, is not installed.
        FileNotFoundError: If an input names no image.
        OSError: If an input cannot be read, or a shard not be written.
        ValueError: If an argument is out of range, a column cannot be carried over, the output is not one of these
            arguments, the model has no classifier, takes neither RGB nor grey images, or gives scores that are not
            finite.
        RuntimeError: If the model cannot be deployed, or workers die again and again at the same images. The shards
            that were made remain.
    """
    ray = import_ray()
    for name, value, least in (
            ('topk', topk, 1), ('batch_size', batch_size, 1), ('shard_size', shard_size, 1), ('workers', workers, 1),
            ('num_gpus', num_gpus, 0), ('decoders', decoders, 0)):
        if value is not None and value < least:
            raise ValueError(f'Invalid {name} {value}: use at least {least}.')
    labels = labels_for(model, labels)
    topk = min(topk, model.num_classes)
    output = _check_places(inputs, output)
    load = image_loader(model, reducing_gap=reducing_gap)  # these raise here what would be raised in a worker
    precision = check_engine(engine, model, num_gpus)
    if engine != 'deployed':
        num_gpus = 0
    listing = list_inputs(inputs, image_column)
    carried = carried_columns(listing.schemas(), image_column, columns, COLUMNS)
    manifest = make_manifest(model, listing, labels, topk, shard_size, image_column, carried, precision, reducing_gap)
    with output_of(manifest, output) as folder:
        shards = ShardFolder(folder, len(listing), shard_size)
        missing = shards.missing()
        if not missing:
            return report_on(shards, model.resolutions, [], 0.0, 0.0, 0)
        files = engine_files(engine, model, folder, listing, image_column, load)
        gflops = [row.total_flops / 1e9 for row in cost_table(model)]
        meaning = Meaning(labels, model.resolutions, gflops, topk)
        assembly = Assembly(shards, listing, meaning, carried)
        started = time.time()  # as the workers tell the time
        with ray_cluster(address, None if _pixels_move(num_gpus, decoders) else 2 * _size(model, files)):
            available = ray.cluster_resources()
            plan = plan_workers(available.get('CPU', 0), available.get('GPU', 0), workers, num_gpus, decoders)
            units = list(_units(listing, shards, missing, plan, batch_size))
            attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
            answers = _answers(
                ray, (engine, model, files), units, attempts, plan, image_column, topk, batch_size,
                reducing_gap)
            _write(answers, assembly, shards, missing, progress)
            ended = time.time()
            dead = ray.get(attempts.repeated.remote())
        return report_on(shards, model.resolutions, missing, ended - started, ended - assembly.began, dead)


def _check_places(inputs: Sequence[str | Path], output: str | os.PathLike[str]) -> str:
    """The path of the output, which must not be among the inputs of the next run; these must be there for workers."""
    name = local_path(os.fspath(output))
    if is_address(name):
        raise ValueError(
            f'Invalid output {output}: shards are written to a folder on this machine; name one, and copy it there when'
            ' the run is complete.')
    folder = Path(name).resolve()
    for item in inputs:
        if os.fspath(item).startswith('memory://'):
            raise ValueError(f'{item}: workers cannot see the memory of another process; write these files to a disk.')
        path = local_path(os.fspath(item))
        if os.path.isdir(path) and folder.is_relative_to(Path(path).resolve()):
            raise ValueError(f'Invalid output {output}: it lies in the input {item}; name a folder outside of it.')
    return name


def _pixels_move(num_gpus: float | None, decoders: int | None) -> bool:
    """Whether there will be decoders, which pass pixels on; without them, all that Ray has to store is small."""
    if decoders is not None:
        return decoders > 0
    return torch.cuda.is_available() if num_gpus is None else num_gpus > 0


def _size(model: DRNet, files: dict[str, bytes] | None) -> int:
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    return weights + sum(map(len, (files or {}).values()))


def _units(
        listing: Listing,
        shards: ShardFolder,
        missing: Sequence[int],
        plan: Plan,
        batch_size: int,
) -> Iterator[dict[str, Any]]:
    """What is to be done, in pieces that are large enough for full batches and small enough for all workers."""
    images = sum(stop - start for start, stop in map(shards.span, missing))
    # Decoders hold the pixels of a whole unit, and hand them to workers that put several together.
    size = batch_size if plan.decoders else min(_BATCHES * batch_size, -(-images // plan.workers))
    for shard in missing:
        start, stop = shards.span(shard)
        for first in range(start, stop, size):
            yield work_unit(first, listing.locations(first, min(first + size, stop)))


def _answers(
        ray: Any,
        engine: tuple[str, DRNet, dict[str, bytes] | None],
        units: Sequence[dict[str, Any]],
        attempts: Any,
        plan: Plan,
        image_column: str,
        topk: int,
        batch_size: int,
        reducing_gap: float | None,
) -> Generator[Any, None, None]:
    """Stream units of work through the workers; yields their answers, tables, as they come.

    Ray Data starts a worker anew that has died, and gives it its work again, as often as it takes.
    """
    logging.getLogger('ray.data').setLevel(logging.CRITICAL)  # errors are raised, and told once
    name, model, files = engine
    reference, program = ray.put(copy.deepcopy(model).cpu()), ray.put((name, files))
    dataset = ray.data.from_items(units, override_num_blocks=len(units))
    dataset.context.enable_progress_bars = False  # there is one for the whole run
    dataset.context.print_on_execution_start = False
    worker: type[ClassifyingWorker] = ClassifyingWorker
    work: dict[str, Any] = {'batch_size': 1, 'batch_format': 'pyarrow'}
    if plan.decoders:
        dataset = dataset.map_batches(
            DecodingWorker, fn_constructor_args=(reference, attempts, image_column, 1, reducing_gap), num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=plan.decoders), **work)
        worker = DecodedClassifyingWorker
        work = {'batch_size': _BATCHES * batch_size, 'batch_format': 'numpy'}
    device = 'cuda' if plan.num_gpus else 'cpu'
    dataset = dataset.map_batches(
        worker,
        fn_constructor_args=(
            reference, attempts, image_column, topk, batch_size, plan.threads, device, program, reducing_gap),
        num_cpus=plan.num_cpus, num_gpus=plan.num_gpus, compute=ray.data.ActorPoolStrategy(size=plan.workers),
        **work)
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format='pyarrow')
    except ray.exceptions.RayError as error:
        reason = _reason(ray, attempts) or first_line(error)
        raise RuntimeError(f'The workers failed ({reason}). The shards that were made remain.') from error


def _reason(ray: Any, attempts: Any) -> str | None:
    """What a worker said before it failed."""
    try:
        reason: str | None = ray.get(attempts.failure.remote(), timeout=10)
    except ray.exceptions.RayError:
        return None
    return reason


def _write(
        answers: Generator[Any, None, None],
        assembly: Assembly,
        shards: ShardFolder,
        missing: Sequence[int],
        progress: bool,
) -> None:
    """Write each shard when it is complete."""
    made = len(shards) - len(missing)
    to_do = sum(stop - start for start, stop in map(shards.span, missing))
    shown = Progress(shards.images, shards.images - to_do, len(shards), made, progress)
    with shown, closing(answers):  # so that the workers stop on an error, too
        for table in answers:
            for shard, rows in assembly.add(table):
                shards.write(shard, rows)
                made += 1
                shown.shard()
            shown.update(len(table))
    assembly.check_nothing_is_left()
    if made < len(shards):
        raise RuntimeError(f'Only {made} of {len(shards)} shards were made; run the same again.')
