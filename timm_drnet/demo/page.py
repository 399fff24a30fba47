"""The page: one tab for a photograph, one for several, as a Gradio app for this machine or a Hugging Face Space.

Photographs stay with the server, which deletes them after an hour. Nothing is sent elsewhere: no telemetry, no fonts
and no scripts of other servers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ..data.pixels import UnreadableImageError
from ..evaluate.answers import Answers
from .network import Album, Network, Photograph
from .rendering import (
    TEMPLATE,
    render_album,
    render_introduction,
    render_notice,
    render_photograph,
    render_samples,
)

Upload: TypeAlias = dict[str, Any]
Tried: TypeAlias = dict[Path, Answers]

MOST_FILES = 100
"""Photographs in one go of the second tab."""
_MOST_TRIED = 200
_AT_ONCE = 4
"""Visitors whose photographs are decoded at the same time; the network takes one after the other."""
_WAITING = 64
_AN_HOUR = 3600
_MOST_VISITORS = 1000
"""Whose photographs' pictures are kept, some hundred kilobytes each; the page of an older one begins anew."""

_ONE = render_notice('Drop a photograph, or pick one: the answer appears here.', role='note')
_SEVERAL = render_notice('Drop some photographs: a contact sheet and a table appear here.', role='note')
_TELL_WHICH = """element.addEventListener('click', event => {
    const button = event.target.closest('button');
    if (button) trigger('click', {sample: button.value});
});"""


def build_page(network: Network, samples: Sequence[str | Path] = ()) -> Any:
    """Build the page.

    Args:
        network: The model.
        samples: Photographs to pick from.

    Returns:
        A ``gradio.Blocks``; start it with ``launch(**launch_options(samples))``.

    Raises:
        ValueError: If a sample cannot be read.
    """
    import gradio as gr

    files = [str(Path(sample).resolve()) for sample in samples]
    with gr.Blocks(title='timm-drnet', analytics_enabled=False, delete_cache=(_AN_HOUR, _AN_HOUR)) as page:
        gr.HTML(render_introduction(network), apply_default_css=False)
        with gr.Tab('One photograph'), gr.Row():
            with gr.Column(scale=2, min_width=320):
                photo = gr.Image(type='filepath', label='Photograph', height=300)
                picks = gr.HTML(
                    render_samples(files), apply_default_css=False, js_on_load=_TELL_WHICH, visible=bool(files))
            with gr.Column(scale=3, min_width=320):
                position = _slider(network)
                told = gr.HTML(_ONE, apply_default_css=False)
        with gr.Tab('Several photographs'):
            uploads = gr.File(file_count='multiple', file_types=['image'], label='Photographs', height=180)
            take = gr.Button('Take the samples', visible=bool(files))
            all_position = _slider(network)
            all_told = gr.HTML(_SEVERAL, apply_default_css=False)
        seen, tried, album = gr.State(), gr.State({}), gr.State()
        look, turn = _one(network)
        look_at_all, turn_all = _several(network)
        photo.change(
            look, [photo, position, tried], [told, seen, tried], preprocess=False, api_name='look',
            trigger_mode='always_last', show_progress_on=told)
        position.change(
            turn, [position, seen, tried], told, trigger_mode='always_last', show_progress='hidden',
            api_visibility='private')
        uploads.change(
            look_at_all, [uploads, all_position], [all_told, album], preprocess=False, api_name='look_at_all',
            trigger_mode='always_last', show_progress_on=all_told)
        all_position.change(
            turn_all, [all_position, album], all_told, trigger_mode='always_last', show_progress='hidden',
            api_visibility='private')
        take.click(lambda: files, None, uploads, api_name='samples')

        def pick(event: gr.EventData) -> str:
            return files[int(event.sample)]

        picks.click(pick, None, photo, api_visibility='private')
    return page.queue(max_size=_WAITING, default_concurrency_limit=_AT_ONCE)


def launch_options(samples: Sequence[str | Path] = ()) -> dict[str, Any]:
    """What to give to the page's ``launch``, beside where to be reached.

    Args:
        samples: Those that the page was built with: Gradio has to be told that it may serve them.
    """
    import gradio as gr

    theme = gr.themes.Default(
        font=(gr.themes.Font('system-ui'), gr.themes.Font('sans-serif')), font_mono=(gr.themes.Font('monospace'),))
    # Gradio's own grey is too faint to read on white.
    soft = {'body_text_color_subdued': '*neutral_600', 'body_text_color_subdued_dark': '*neutral_300'}
    return {
        'theme': theme.set(**soft, block_info_text_color='*neutral_600', block_info_text_color_dark='*neutral_300'),
        'css': (TEMPLATE / 'style.css').read_text(encoding='utf-8'),
        'allowed_paths': [str(Path(sample).resolve()) for sample in samples], 'max_file_size': '50mb',
        'state_session_capacity': _MOST_VISITORS, 'footer_links': [], 'run_history': False, 'ssr_mode': False,
        'enable_monitoring': False,
    }


def _one(network: Network) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What happens to one photograph, and when the slider moves."""

    def look(upload: Upload | None, position: float, tried: Tried) -> tuple[str, Photograph | None, Tried]:
        if upload is None:
            return _ONE, None, tried
        path = _uploaded(upload)
        try:
            photo = network.look(path)
        except (UnreadableImageError, ValueError) as error:
            return render_notice(f'{path.name}: {error}'), None, tried
        # The path has the content's hash in it, so a photograph counts once.
        kept = {**{one: answers for one, answers in tried.items() if one != path}, path: photo.answers}
        kept = dict(list(kept.items())[-_MOST_TRIED:])
        return render_photograph(network, photo, list(kept.values()), position), photo, kept

    def turn(position: float, photo: Photograph | None, tried: Tried) -> Any:
        import gradio as gr

        return gr.skip() if photo is None else render_photograph(network, photo, list(tried.values()), position)

    return look, turn


def _several(network: Network) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What happens to several photographs, and when the slider moves."""

    def look_at_all(uploads: list[Upload] | None, position: float) -> tuple[str, Album | None]:
        if not uploads:
            return _SEVERAL, None
        if len(uploads) > MOST_FILES:
            return render_notice(
                f'{len(uploads)} files: give at most {MOST_FILES} here; timm-drnet predict takes any number.'), None
        try:
            album = network.look_at_all([_uploaded(upload) for upload in uploads])
        except ValueError as error:
            return render_notice(str(error)), None
        return render_album(network, album, position), album

    def turn(position: float, album: Album | None) -> Any:
        import gradio as gr

        return gr.skip() if album is None else render_album(network, album, position)

    return look_at_all, turn


def _uploaded(upload: Upload) -> Path:
    """The file of an upload. Gradio lets a request name any file of the server if it leaves out what kind it is."""
    import gradio as gr

    path = Path(str(upload['path'])).resolve()
    if not path.is_relative_to(Path(gr.utils.get_upload_folder()).resolve()):
        raise gr.Error('This file was not uploaded here.', print_exception=False)
    return path


def _slider(network: Network) -> Any:
    import gradio as gr

    dial = network.dial
    meaning = 'The network stops when it is this sure, in per cent.' if dial.is_threshold else (
        'How sure the predictor has to be that the smallest size will do, in per cent.')
    return gr.Slider(
        0, 100, dial.own, step=1, label='Budget',
        info=f"{meaning} Left: fewer FLOPs; right: more. {dial.own} is the model's own.")
