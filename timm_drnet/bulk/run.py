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
from tqdm import tqdm

from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..data.labels import labels_for
from ..data.reading import image_loader
from ..deploy.deployed import deploy
from .assembly import Assembly, Meaning
from .attempts import Attempts
from .cluster import Plan, import_ray, plan_workers, ray_cluster
from .listing import Listing, list_inputs
from .manifest import make_manifest, output_of
from .report import BulkReport, report_on
from .shards import ShardFolder
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
        shard_size: int = 10_000,
        workers: int | None = None,
        num_gpus: float | None = None,
        decoders: int | None = None,
        address: str | None = None,
        progress: bool = False,
) -> BulkReport:
    """Classify any number of images into a folder of Parquet files, by several processes or machines.

    Needs Ray Data. Each file, a shard, is there as a whole or not at all; called again with the same arguments, after
    whatever has happened, it makes only those that are missing. Workers that die are replaced. Every image has exactly
    one row, in the order of `list_inputs`: its ``path`` and ``row``; ``label``, ``class_index``, ``probability``,
    ``resolution`` and ``gflops``; and ``error``, which is null unless the image is unreadable. With ``topk`` above 1
    there are ``top_labels``, ``top_class_indices`` and ``top_probabilities``, too.

    Args:
        model: A DRNet; it does not change.
        inputs: Folders, Parquet files, image files and patterns, see `list_inputs`. On a cluster, every machine must
            find the files under the same paths.
        output: The folder for the shards, on this machine: a new one, or that of an earlier run.
        labels: One for each class, or None for `class_labels`.
        topk: Number of labels for each image; all labels if there are fewer.
        image_column: Column of Parquet files that holds the images.
        batch_size: Images that the predictor, or a branch, runs on at once.
        shard_size: Images in a shard.
        workers: Processes that classify; None for one for each core, or accelerator.
        num_gpus: Accelerators of each worker; None for 1 if there are any.
        decoders: Processes that only decode images; with 0 the workers do so. None for 0 without accelerators, and with
            them for the cores that workers leave.
        address: Of a Ray cluster to join. None for this machine alone.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Returns:
        What the shards say in all.

    Raises:
        ImportError: If Ray Data is not installed.
        FileNotFoundError: If an input names no image.
        OSError: If an input cannot be read, or a shard not be written.
        ValueError: If an argument is out of range, the output is not one of these arguments, the model has no
            classifier, takes neither RGB nor grey images, or gives scores that are not finite.
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
    _check_output_is_apart(inputs, output)
    image_loader(model)  # these raise here what would be raised in a worker
    deploy(model, micro_batch=0)
    listing = list_inputs(inputs, image_column)
    with output_of(make_manifest(model, listing, labels, topk, shard_size), output) as folder:
        shards = ShardFolder(folder, len(listing), shard_size)
        missing = shards.missing()
        rows = cost_table(model)
        # In the pretrain stage the predictor does not run.
        costs = [row.total_flops if model.args.stage == 'joint' else row.backbone_flops for row in rows]
        if not missing:
            return report_on(shards, model.resolutions, [], 0.0, 0.0, 0)
        assembly = Assembly(shards, listing, Meaning(labels, model.resolutions, [c / 1e9 for c in costs], topk))
        started = time.time()  # as the workers tell the time
        with ray_cluster(address, None if _pixels_move(num_gpus, decoders) else 2 * _size(model)):
            available = ray.cluster_resources()
            plan = plan_workers(available.get('CPU', 0), available.get('GPU', 0), workers, num_gpus, decoders)
            units = list(_units(listing, shards, missing, plan, batch_size))
            answers = _answers(ray, model, units, plan, image_column, topk, batch_size)
            _write(answers, assembly, shards, missing, progress)
            ended = time.time()
        return report_on(
            shards, model.resolutions, missing, ended - started, ended - assembly.began,
            max(0, len(assembly.workers) - plan.workers))


def _check_output_is_apart(inputs: Sequence[str | Path], output: str | os.PathLike[str]) -> None:
    """Refuse an output that would be among the inputs of the next run."""
    folder = Path(output).resolve()
    for item in inputs:
        if os.path.isdir(item) and folder.is_relative_to(Path(item).resolve()):
            raise ValueError(f'Invalid output {output}: it lies in the input {item}; name a folder outside of it.')


def _pixels_move(num_gpus: float | None, decoders: int | None) -> bool:
    """Whether there will be decoders, which pass pixels on; without them, all that Ray has to store is small."""
    if decoders is not None:
        return decoders > 0
    return torch.cuda.is_available() if num_gpus is None else num_gpus > 0


def _size(model: DRNet) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


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
        model: DRNet,
        units: Sequence[dict[str, Any]],
        plan: Plan,
        image_column: str,
        topk: int,
        batch_size: int,
) -> Generator[Any, None, None]:
    """Stream units of work through the workers; yields their answers, tables, as they come.

    Ray Data starts a worker anew that has died, and gives it its work again, as often as it takes.
    """
    logging.getLogger('ray.data').setLevel(logging.CRITICAL)  # errors are raised, and told once
    reference = ray.put(copy.deepcopy(model).cpu())
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    dataset = ray.data.from_items(units, override_num_blocks=len(units))
    dataset.context.enable_progress_bars = False  # there is one for the whole run
    dataset.context.print_on_execution_start = False
    worker: type[ClassifyingWorker] = ClassifyingWorker
    work: dict[str, Any] = {'batch_size': 1, 'batch_format': 'pyarrow'}
    if plan.decoders:
        dataset = dataset.map_batches(
            DecodingWorker, fn_constructor_args=(reference, attempts, image_column, 1), num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=plan.decoders), **work)
        worker = DecodedClassifyingWorker
        work = {'batch_size': _BATCHES * batch_size, 'batch_format': 'numpy'}
    device = 'cuda' if plan.num_gpus else 'cpu'
    dataset = dataset.map_batches(
        worker, fn_constructor_args=(reference, attempts, image_column, topk, batch_size, plan.threads, device),
        num_cpus=plan.num_cpus, num_gpus=plan.num_gpus, compute=ray.data.ActorPoolStrategy(size=plan.workers),
        **work)
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format='pyarrow')
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError(f'The workers failed ({reason[-1].strip()}). The shards that were made remain.') from error


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
    bar = tqdm(
        total=shards.images, initial=shards.images - to_do, desc='classify', unit='image', leave=False,
        disable=None if progress else True)
    with bar, closing(answers):  # so that the workers stop on an error, too
        bar.set_postfix_str(f'{made} of {len(shards)} shards')
        for table in answers:
            for shard, rows in assembly.add(table):
                shards.write(shard, rows)
                made += 1
                bar.set_postfix_str(f'{made} of {len(shards)} shards', refresh=False)
            bar.update(len(table))
    assembly.check_nothing_is_left()
    if made < len(shards):
        raise RuntimeError(f'Only {made} of {len(shards)} shards were made; run the same again.')
