"""Trained weights of timm models: from a file put by hand, from huggingface_hub's cache, or over the network."""

import inspect
import queue
import shutil
import textwrap
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.request import urlopen

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError
from timm.models import PretrainedCfg, get_pretrained_cfg

from ..utils import paths
from ..utils.errors import VitvizError

_RESTARTS = 2  # how often a server that cannot resume may begin a broken download again


def create_pretrained(name: str) -> torch.nn.Module:
    """The timm model ``name`` (known to timm) with its trained weights, on the CPU, in training mode as timm makes it.

    Weights come from ``<cache>/weights/<name>.safetensors`` if somebody put that file there, else from
    huggingface_hub's cache without touching the network, else from the hub (``HF_ENDPOINT``). The few of timm's
    weights that are on no hub come from their own address and are kept as ``<cache>/weights/<name>.pth``. Raises
    VitvizError when there are no such weights, they cannot be fetched, or they are damaged; gives up within seconds
    when offline.
    """
    cfg = _config(name)
    suffix = ".safetensors" if cfg.hf_hub_id else PurePosixPath(cfg.url).suffix
    by_hand = paths.cache_dir() / "weights" / (name + suffix)
    address = _address(cfg)
    if by_hand.is_file():
        try:
            return _build(name, by_hand)
        except Exception as error:  # timm's conversions stumble over a foreign file in every way there is
            raise VitvizError(
                f"The weights file {by_hand} is damaged or not of {name} ({_reason(error)}). "
                f"Delete it, or put {address} in its place."
            ) from error
    file = _cached(cfg) or _fetch(name, cfg, address, by_hand)
    try:
        return _build(name, file)
    except SafetensorError as error:  # a server that names no length can cut a file unnoticed
        file.resolve().unlink(missing_ok=True)  # the blob the cache's link points to
        file.unlink(missing_ok=True)
        raise VitvizError(
            f"The weights of {name} from {address} arrived damaged ({_reason(error)}) and were removed from the cache. "
            "Call again to fetch them anew."
        ) from error


def _config(name: str) -> PretrainedCfg:
    """timm's description of the weights ``name``; VitvizError when there are none."""
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # a tag that this architecture does not have
        cfg = None
    if cfg is None or not cfg.has_weights:
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        there_are = f"there are {', '.join(tagged)}" if tagged else "there are none for this architecture"
        raise VitvizError(
            f"timm has no trained weights {name!r}; {there_are}. With pretrained=False you get it untrained."
        )
    return cfg


def _hub_files(cfg: PretrainedCfg) -> list[dict[str, str | None]]:
    """Arguments that name each file the weights may be in on the hub, in the order timm tries them."""
    repo, _, revision = cfg.hf_hub_id.partition("@")
    files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    return [{"repo_id": repo, "filename": file, "revision": revision or None} for file in files]


def _address(cfg: PretrainedCfg) -> str:
    """Where a browser finds the weights."""
    return hf_hub_url(**_hub_files(cfg)[0]) if cfg.hf_hub_id else cfg.url


def _cached(cfg: PretrainedCfg) -> Path | None:
    """The file in huggingface_hub's cache, or None."""
    found = [try_to_load_from_cache(**file) for file in _hub_files(cfg)] if cfg.hf_hub_id else []
    return next((Path(file) for file in found if isinstance(file, str)), None)


def _fetch(name: str, cfg: PretrainedCfg, address: str, by_hand: Path) -> Path:
    """Download the weights; the file is whole (as long as the server said it would be) or VitvizError is raised."""
    from .cards import embedded_names

    offline = (
        f"The embedded models work offline: {', '.join(embedded_names())}. "
        f"Or download {address} elsewhere and put it at {by_hand}."
    )
    where = f"repository {cfg.hf_hub_id} on {constants.ENDPOINT}" if cfg.hf_hub_id else address
    try:
        file = _first_on_hub(cfg) if cfg.hf_hub_id else None
    except GatedRepoError as error:
        raise VitvizError(
            f"The weights of {name} are in the gated {where}. Accept its terms there and log in with "
            f"`hf auth login`. {offline}"
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise VitvizError(
            f"There are no weights of {name} for you: {where} is missing, private or has no such file. "
            f"Check HF_ENDPOINT. {offline}"
        ) from error
    except OfflineModeIsEnabled as error:
        raise VitvizError(f"Did not ask {where} for {name}, since HF_HUB_OFFLINE is set. {offline}") from error
    except Exception as error:  # of requests, httpx or httpx2, by the version of huggingface_hub: no common base
        raise VitvizError(f"Could not reach {where} for the weights of {name} ({_reason(error)}). {offline}") from error
    try:
        return _download(file) if file else _download_url(cfg.url, by_hand)
    except Exception as error:
        raise VitvizError(
            f"The download of {name} from {where} failed ({_reason(error)}); no part of it is used. "
            f"Call again to retry. {offline}"
        ) from error


def _first_on_hub(cfg: PretrainedCfg) -> dict[str, str | None]:
    """The first of the files that the hub has.

    Asked for before downloading, because hf_hub_download retries a dead hub for half a minute and more, and in a
    thread, because each of the hub's many addresses may take its own time-out when a firewall drops packets.
    """
    for file in _hub_files(cfg):
        try:
            _within(constants.HF_HUB_ETAG_TIMEOUT, partial(get_hf_file_metadata, hf_hub_url(**file)))
            return file
        except EntryNotFoundError as error:
            missing = error
    raise missing


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Run ``call`` and let its exceptions through; TimeoutError when it is not done in time."""
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            call()
            outcome.put(None)
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds} s") from None
    if error:
        raise error


class _Progress(tqdm):
    """huggingface_hub's progress bar, which ends downloads that a server begins again from the start each time.

    huggingface_hub alone would repeat them for ever: each piece that arrives renews its count of retries.
    """

    restarts = 0

    def update(self, n: float | None = 1) -> bool | None:
        if n is not None and n < 0:
            self.restarts += 1
            if self.restarts > _RESTARTS:
                raise OSError(f"the server broke off {self.restarts} times and cannot resume")
        return super().update(n)


def _download(file: dict[str, str | None]) -> Path:
    """The file in huggingface_hub's cache after its download, resumed when it breaks off."""
    # before 1.x there is no such option, and no retry of broken bodies either
    bar = {"tqdm_class": _Progress} if "tqdm_class" in inspect.signature(hf_hub_download).parameters else {}
    return Path(hf_hub_download(**file, **bar))


def _download_url(url: str, to: Path) -> Path:
    """``url`` (the few timm weights that are not on the hub) as the file ``to``, complete or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(to.name + ".part")
    with urlopen(url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as reply, part.open("wb") as out:
        shutil.copyfileobj(reply, out)
        if out.tell() != int(reply.headers.get("Content-Length", out.tell())):  # urllib does not mind a cut body
            raise OSError(f"got {out.tell()} of {reply.headers['Content-Length']} bytes")
    part.replace(to)
    return to


def _build(name: str, file: Path) -> torch.nn.Module:
    """The model with the weights in ``file``, through timm's own conversion of foreign checkpoints."""
    if file.suffix == ".safetensors":
        overlay = {"file": str(file)}
    else:  # timm 1.0.20 would unpickle anything in a `file`
        overlay = {"state_dict": torch.load(file, map_location="cpu", weights_only=True)}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={**overlay, "custom_load": False})
    for key in overlay:
        model.pretrained_cfg.pop(key, None)  # a copy of all weights, or a path of this machine
    return model


def _reason(error: BaseException) -> str:
    """One line that names the error at the root of ``error``."""
    while error.__cause__:
        error = error.__cause__
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
