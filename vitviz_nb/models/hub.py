"""Trained weights of timm models: from a file put by hand, from huggingface_hub's cache, or over the network."""

import json
import re
import textwrap
from pathlib import Path, PurePosixPath

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors import SafetensorError
from timm.models import PretrainedCfg, get_pretrained_cfg

from ..utils.errors import VitvizError
from ..utils.files import sha256
from ..utils.paths import cache_dir
from .cards import embedded_names

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def create_pretrained(name: str, **options) -> torch.nn.Module:
    """The timm model ``name`` (known to timm) with its trained weights, on the CPU, in training mode as timm makes it.

    Weights come from ``<cache>/weights/<name>.safetensors`` if somebody put that file there, else from huggingface_hub's cache
    without touching the network, else from the hub (``HF_ENDPOINT``). The few of timm's weights that are on no hub come from
    their own address and are kept in ``<cache>/weights``.

    ``options`` are timm's: with ``img_size``, it resamples the position embeddings.

    Raises:
        VitvizError: no such weights; they cannot be fetched; they are damaged (files of the hub are named by their SHA-256).
    """
    config = _config(name)
    by_hand = cache_dir() / "weights" / (name + (".safetensors" if config.hf_hub_id else PurePosixPath(config.url).suffix))
    address = hf_hub_url(**_candidates(config)[0]) if config.hf_hub_id else config.url
    if by_hand.is_file():
        try:
            return _build(name, by_hand, options)
        except Exception as error:  # timm's conversions stumble over a foreign file in every way there is
            raise VitvizError(f"The weights file {by_hand} is damaged or not of {name} ({_reason(error)}). "
                              f"Delete it, or put {address} in its place.") from error
    otherwise = f"Or download {address} elsewhere and put it at {by_hand}."
    file = _download(name, _candidates(config) if config.hf_hub_id else [], otherwise, config.url, by_hand)
    return _checked(name, file, address, name, options)


def create_from_hub(name: str, pretrained: bool = True, **options) -> torch.nn.Module:
    """The timm model in a repository of the hub, ``hf-hub:user/model`` or ``hf-hub:user/model@revision``, or one untrained."""
    repo, _, revision = name.removeprefix("hf-hub:").partition("@")
    folder = _download(name, _files(repo, revision, "config.json")).parent
    try:
        architecture = str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"])
    except (ValueError, KeyError, TypeError):
        raise VitvizError(f"{name} is no model of timm, whose config.json names its architecture. A model of another library is "
                          f"loaded by that library, and given to vv.wrap(module).") from None
    if not timm.is_model(architecture):
        raise VitvizError(f"{name} is a {architecture}, which timm {timm.__version__} does not know.")
    if not pretrained:
        return timm.create_model(f"local-dir:{folder}", **options)
    file = _download(name, _files(repo, folder.name, *_WEIGHTS))  # of the same commit as the configuration
    return _checked(name, file, name, f"local-dir:{folder}", options)


def _checked(name: str, file: Path, address: str, model: str, options: dict) -> torch.nn.Module:
    """The ``model`` with the weights of a downloaded file, which goes if it is damaged."""
    blob = file.resolve()
    try:
        if re.fullmatch("[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
            raise SafetensorError("its SHA-256 is not the one it is stored under")
        return _build(model, file, options)
    except (SafetensorError, RuntimeError, EOFError) as error:  # a disk, a proxy or a server that cut a file unnoticed
        if options and isinstance(error, RuntimeError):
            raise VitvizError(f"The weights of {name} are not for {options['img_size']} px ({_reason(error)}).") from error
        blob.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        raise VitvizError(f"The weights of {name} from {address} arrived damaged ({_reason(error)}) and were removed from the "
                          f"cache. Call again to fetch them anew.") from error


def _config(name: str) -> PretrainedCfg:
    """timm's description of the weights ``name``; VitvizError when there are none."""
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError:  # a tag that this architecture does not have
        config = None
    if config is None or not config.has_weights:
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        there_are = f"there are {', '.join(tagged)}" if tagged else "there are none for this architecture"
        raise VitvizError(f"timm has no trained weights {name!r}; {there_are}. With pretrained=False you get it untrained.")
    return config


def _candidates(config: PretrainedCfg) -> list[dict[str, str | None]]:
    """Arguments that name each file the weights may be in on the hub, in the order timm tries them."""
    repo, _, revision = config.hf_hub_id.partition("@")
    return _files(repo, revision, *[config.hf_hub_filename] if config.hf_hub_filename else _WEIGHTS)


def _files(repo: str, revision: str, *names: str) -> list[dict[str, str | None]]:
    return [{"repo_id": repo, "filename": name, "revision": revision or None} for name in names]


def _download(name: str, candidates: list[dict[str, str | None]], otherwise: str = "", url: str = "", by_hand=None) -> Path:
    """The first of ``candidates``, or else ``url``, whole, from huggingface_hub's cache or the network; or VitvizError."""
    where = f"repository {candidates[0]['repo_id']} on {constants.ENDPOINT}" if candidates else url
    try:
        if not candidates:
            by_hand.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(by_hand))
            return by_hand
        for candidate in candidates:
            cached = try_to_load_from_cache(**candidate)
            if isinstance(cached, str):
                return Path(cached)
        for candidate in candidates:
            try:  # asked for once before, because the download retries a hub that is out of reach for half a minute
                get_hf_file_metadata(hf_hub_url(**candidate), timeout=constants.HF_HUB_ETAG_TIMEOUT)
                return Path(hf_hub_download(**candidate))
            except EntryNotFoundError:
                if candidate is candidates[-1]:
                    raise
    except Exception as error:  # of requests, httpx or urllib, by what failed: no common base
        if isinstance(error, GatedRepoError):
            problem = f"The weights of {name} are in the gated {where}. Accept its terms there and log in with `hf auth login`."
        elif isinstance(error, RepositoryNotFoundError):
            problem = f"There are no weights of {name} for you: {where} is missing or private. Check HF_ENDPOINT."
        elif isinstance(_root(error), OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            problem = f"Did not ask {where} for {name}, since HF_HUB_OFFLINE is set."
        elif isinstance(error, EntryNotFoundError) and not isinstance(error, FileNotFoundError):  # that one: out of reach
            problem = f"There are no weights of {name} for you: {where} has no such file. Check HF_ENDPOINT."
        else:
            problem = (f"Could not fetch the weights of {name} from {where} ({_reason(error)}); no part of them is used. "
                       f"Call again to retry.")
        raise VitvizError(f"{problem} The embedded models work offline: {', '.join(embedded_names())}. {otherwise}") from error


def _build(name: str, file: Path, options: dict) -> torch.nn.Module:
    """The model with the weights in ``file``, through timm's own conversion of foreign checkpoints."""
    if file.suffix == ".safetensors":
        overlay = {"file": str(file)}
    else:  # timm 1.0.20 would unpickle anything in a `file`
        overlay = {"state_dict": torch.load(file, map_location="cpu", weights_only=True)}
    overlay |= {"source": None, "custom_load": False}  # or else timm reads a folder's weights itself
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    for key in ("file", "state_dict"):
        model.pretrained_cfg.pop(key, None)  # a copy of all weights, or a path of this machine
    return model


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ else error


def _reason(error: BaseException) -> str:
    """One line that names the error at the root of ``error``."""
    root = _root(error)
    return textwrap.shorten(f"{type(root).__name__}: {root}", 200, placeholder=" …")
