"""Publishing on the Hugging Face Hub: the folder that is uploaded, and its one commit."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import save_for_hf

from ..core.drnet import DRNet
from ..data.labels import check_labels
from ..train.training_run import TrainingRun
from ..version import __version__
from .checkpoints import check_finite

CARD = 'README.md'
"""The name of the model card in a repository of the Hub."""


class PublishError(Exception):
    """The Hub did not take what it was given; the message says why and what to do, in one line."""


def disown_source(model: DRNet, run: TrainingRun | None = None) -> None:
    """Drop from a model's configuration what is about the weights it was registered with, as it holds others now.

    Args:
        model: The model, changed in place.
        run: The training that the others come from. It decides on the names of the classes, and the licence of the
            earlier weights says nothing about its own.
    """
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's attribute
    for key in ('tag', 'origin_url', 'description', 'notes'):
        cfg.pop(key, None)
    if run is None or not run.args:
        return
    for key in ('license', 'label_names', 'label_descriptions'):
        cfg.pop(key, None)
    names = run.class_names()
    subset = infer_imagenet_subset(model)
    if names and len(names) == model.num_classes and not (subset and names == ImageNetInfo(subset).label_names()):
        cfg['label_names'] = names
        # timm drops the names when it saves a model of another number of classes than its configuration states
        cfg['num_classes'] = model.num_classes


def infer_base_model(model: DRNet, run: TrainingRun | None = None) -> str | None:
    """The repository of the Hub whose weights a model started from, where that is certain.

    Args:
        model: The model.
        run: Its training; None if it holds the weights of its configuration.

    Returns:
        ORG/NAME, or None.
    """
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    hub_id = cfg.get('hf_hub_id')
    # A model that came from the Hub as it is would be a copy and not based on it.
    certain = run.starts_pretrained if run is not None else cfg.get('source') != 'hf-hub'
    return str(hub_id).partition('@')[0] if hub_id and certain else None


def save_folder(
        model: DRNet,
        folder: str | Path,
        card: ModelCard | None = None,
        labels: Sequence[str] | None = None,
        data_config: Mapping[str, Any] | None = None,
        license: str | None = None,
) -> None:
    """Write the folder that ``timm.create_model('local-dir:FOLDER')``, the Hub and transformers load.

    It holds model.safetensors, config.json and the README, and never a pickle.

    Args:
        model: A DRNet that ``timm.create_model`` made. It is not changed, and may be in any memory format.
        folder: Where to write; created if need be.
        card: The README, or None for a folder without one, such as one that is not published.
        labels: One name for each class, or None for those of the model's configuration.
        data_config: How images are to be prepared, where that differs from the model's configuration: timm's
            ``input_size``, ``mean``, ``std``, ``interpolation`` and ``crop_pct``.
        license: Licence of the weights, or None for the configuration's.

    Raises:
        ValueError: If the number of labels is not that of the classes, a weight is infinite or not a number, or the
            model is not as timm would create it.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    if labels is not None:
        check_labels(labels, model)
    check_finite(model.state_dict())
    tensors = [*model.parameters(), *model.buffers()]
    if not all(t.is_contiguous() for t in tensors):  # channels_last, which safetensors refuses
        model = copy.deepcopy(model)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.contiguous()
    # In force is what the model has now; the name of its backbone timm recorded at creation.
    current = {name: value for name, value in asdict(model.args).items() if value is not None}
    save_for_hf(model, str(folder), model_args=current, safe_serialization=True, data_config=dict(data_config or {}))

    path = folder / 'config.json'
    config = json.loads(path.read_text(encoding='utf-8'))
    if model.args.alpha is None:
        config['model_args'].pop('alpha', None)
    # The root has it too, which is where timm looks; transformers passes both on, and fails.
    config['model_args'].pop('num_classes', None)
    label_names = config['pretrained_cfg'].pop('label_names', None)
    if labels is not None:
        label_names = list(labels)
        config['pretrained_cfg'].pop('label_descriptions', None)
    if label_names:
        config['label_names'] = label_names  # at the root, where transformers looks
    if license is not None:
        config['pretrained_cfg']['license'] = license
    path.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
    if card is not None:
        card.save(folder / CARD)
    _check_rebuilt(model, folder)


def _check_rebuilt(model: DRNet, folder: Path) -> None:
    """Refuse a model that its arguments do not describe: it could not be loaded after a download."""
    with torch.device('meta'):
        rebuilt = timm.create_model(f'local-dir:{folder}', cost_weight=0.0)  # which needs weights
    shapes, wanted = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (rebuilt, model))
    if shapes != wanted:
        key = min(k for k in shapes.keys() | wanted.keys() if shapes.get(k) != wanted.get(k))
        raise ValueError(
            f'The model is not what its configuration describes: {key} is {wanted.get(key, "missing")}, timm would make'
            f' it {shapes.get(key, "missing")}. Create the model with timm.create_model and all of its arguments.')


def find_token() -> str:
    """The token of the Hub that this machine is logged in with.

    Raises:
        PublishError: If there is none.
    """
    try:
        token = get_token()
    except Exception as error:  # of an exchange with the provider of a token, if the environment asks for one
        raise PublishError(f'no token for the Hub: {" ".join(str(error).split())}') from error
    if token is None:
        raise PublishError('no token for the Hub: run "hf auth login", or set HF_TOKEN to a token with write access')
    return token


@dataclass(frozen=True)
class Publication:
    """What `publish` did."""

    commit: CommitInfo
    """The commit, or the last one if nothing had changed."""
    changed: bool
    """Whether there was anything to commit."""
    card_kept: bool
    """Whether the repository had a card already, which was left as it is."""


def publish(
        folder: str | Path,
        repo_id: str,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        replace_card: bool = False,
        message: str = 'Add model',
        token: str | None = None,
) -> Publication:
    """Commit a folder to a repository of the Hub, all files or none.

    Args:
        folder: As `save_folder` writes it.
        repo_id: ORG/NAME. The repository is created if it does not exist.
        private: Whether the repository must be private; an existing public one is refused.
        revision: An existing branch to commit to, or None for the main one.
        create_pr: Whether to open a pull request with the commit.
        replace_card: Whether to overwrite a card that is there already.
        message: Of the commit.
        token: Of the Hub, or None for the one this machine is logged in with.

    Returns:
        What was done.

    Raises:
        PublishError: If it was not possible. No file is changed then, but a new repository may exist.
    """
    token = token or find_token()
    api = HfApi(token=token, library_name='timm-drnet', library_version=__version__)
    try:
        if revision not in (None, 'main'):  # checked first: a mistyped branch must not create a repository
            api.repo_info(repo_id, revision=revision)
        # None leaves a new repository to the organization's default, which may be private.
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        before = api.repo_info(repo_id, revision=revision)
        if private and not before.private:
            raise PublishError(
                f'{repo_id} exists and is public: make it private in its settings, or leave --private out')
        card_kept = not replace_card and api.file_exists(repo_id, CARD, revision=revision)
        files = [f for f in sorted(Path(folder).iterdir()) if not (card_kept and f.name == CARD)]
        # upload_folder may split a commit in two after an error.
        commit = api.create_commit(
            repo_id, [CommitOperationAdd(f.name, f) for f in files], commit_message=message, revision=revision,
            create_pr=create_pr)
    except PublishError:
        raise
    except Exception as error:  # the client's network errors are those of a library that changed between its versions
        raise PublishError(_explain(error, api.endpoint, repo_id, revision)) from error
    return Publication(commit, commit.oid != before.sha, card_kept)


def _explain(error: Exception, endpoint: str, repo_id: str, revision: str | None) -> str:
    lines = [line.strip(' -') for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    said = ' '.join((getattr(error, 'server_message', None) or lines[0]).split())
    if isinstance(error, RevisionNotFoundError):
        return f'{repo_id} has no branch {revision!r}: create it first, as with huggingface_hub.create_branch'
    if isinstance(error, RepositoryNotFoundError) and status == 404:
        return f'{repo_id} does not exist{f", so it has no branch {revision!r}" if revision else ""}, or is not yours'
    if status == 401:
        return f'{endpoint} does not accept the token: run "hf auth login", or set HF_TOKEN to one with write access'
    if status == 403:
        return f'the token has no permission to write to {repo_id} ({said}); use another, or --create-pr'
    if status is not None:
        return f'{endpoint} answered {status}: {said}; nothing was changed, try again'
    if isinstance(error, ValueError):
        return f'the Hub does not take this: {" ".join(lines)}'
    return f'cannot reach {endpoint}: {said}'
