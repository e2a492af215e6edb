"""One real ViT for all of these tests, loaded as a user loads it: from a hub, here a stand-in that serves it under its timm name.

Where the registry that has the weights is out of reach the tests are skipped, with the reason; ``VITVIZ_REQUIRE_PRETRAINED=1``
makes that a failure.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.models.vision_model import VisionModel

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / folder) for folder in ("unit/models", "browser"))]
from hub_stand_in import StandIn  # noqa: E402
from real_vit import NAME, REPO, OutOfReachError, weights  # noqa: E402

SIZE = 112  # px: an eighth of the work of 518 is left of it


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Iterator[StandIn]:
    """A hub that has the weights, and this process and its children pointed at it, with empty caches."""
    try:
        body = weights().read_bytes()
    except OutOfReachError as reason:
        if os.environ.get("VITVIZ_REQUIRE_PRETRAINED", "") not in ("", "0"):
            pytest.fail(str(reason), pytrace=False)
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("hub")
    with StandIn({REPO: {"model.safetensors": body}}) as server, pytest.MonkeyPatch.context() as patch:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        constants = huggingface_hub.constants  # of this process, which has read its environment
        for place, name, value in ((constants, "ENDPOINT", server.endpoint), (constants, "HF_HUB_CACHE", str(folder)),
                                   (constants, "HF_HUB_OFFLINE", False), (constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
                                   (huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)):
            patch.setattr(place, name, value, raising=False)
        for name, value in (("HF_ENDPOINT", server.endpoint), ("HF_HUB_CACHE", str(folder)), ("NO_PROXY", "127.0.0.1"),
                            ("VITVIZ_CACHE", str(tmp_path_factory.mktemp("cache")))):
            patch.setenv(name, value)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server


@pytest.fixture(scope="session")
def model(hub) -> VisionModel:
    return vv.load(NAME, image_size=SIZE)


@pytest.fixture(scope="session")
def photos(model) -> ImageSet:
    """A hundred of the kit's photographs."""
    return ImageSet(model, vv.photos(), 100)
