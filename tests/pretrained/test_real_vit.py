"""What the kit promises of a real network: a ViT-S/14 of 22 million parameters, trained on 142 million photographs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from real_vit import NAME, weights
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed

import vitviz_nb as vv
from vitviz_nb.models.reading import activations, tokens
from vitviz_nb.models.sites import find_site, find_sites
from vitviz_nb.visualize.recipe import RECIPES

GRID, UNITS, LAYERS = (8, 8), 1536, 12  # patches of 14 px


def maps(model, images, kind="mlp", layer=-1) -> torch.Tensor:
    """Activations at every patch: (N, 8, 8, units)."""
    site = find_site(model, layer, kind)
    with torch.inference_mode():
        return tokens(model, site, model.normalize(images)).float().view(len(images), *GRID, -1)


def test_it_is_loaded_from_the_hub_once_and_resampled_as_timm_does(hub, model):
    stored = load_file(weights())["pos_embed"]
    assert model.image_size == 112 and stored.shape[1] == 1 + 37**2
    assert torch.allclose(model.module.pos_embed, resample_abs_pos_embed(stored, [8, 8], num_prefix_tokens=1), atol=1e-5)
    fetched = [path for method, path, _ in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert len(fetched) == 1 and NAME in fetched[0]
    requests = len(hub.requests)
    assert torch.equal(vv.load(NAME, image_size=112).module.pos_embed, model.module.pos_embed)
    assert len(hub.requests) == requests


def test_its_neurons_are_where_they_are(model):
    sites = find_sites(model)
    assert next(iter(sites)) == "mlp" and len(sites["mlp"]) == LAYERS
    assert all((site.units, site.grid) == (UNITS, GRID) for site in sites["mlp"])
    assert all(site.grid == GRID for site in sites["residual"])


@pytest.mark.parametrize("kind", ["residual", "mlp", "query", "key", "value"])
def test_a_changed_patch_changes_the_token_at_its_position_first(model, photos, kind):
    """In layer 0 no information has moved yet but through one attention: its own token changes most by far."""
    image = photos.batch([0])
    for row, column in ((0, 0), (2, 5), (5, 2), (7, 7), (0, 7), (3, 4)):
        changed = image.clone()
        changed[..., 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = torch.rand(1, 3, 14, 14)
        before, after = maps(model, torch.cat([image, changed]), kind, 0)
        moved = (after - before).norm(dim=-1)
        assert divmod(moved.argmax().item(), 8) == (row, column)
        assert moved[row, column] > 3 * moved.flatten().topk(2).values[1]


def test_maps_lie_on_the_objects_and_on_no_mirror_image_of_them(model, photos):
    """Some neuron of the last layers follows the masks of photographs it has never seen; of mirrored masks none does."""
    masks = F.avg_pool2d(photos.masks(range(photos.n))[:, None], 14)[:, 0]
    seen = torch.cat([maps(model, images, layer=10) for _, images in photos.batches("maps")])
    seen = seen.flatten(1, 2)

    def best(masks: torch.Tensor) -> tuple[int, float]:
        mask = masks.flatten(1)[..., None]
        a, b = seen - seen.mean(1, keepdim=True), mask - mask.mean(1, keepdim=True)
        r = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-6)).mean(0)
        return r.argmax().item(), r.max().item()

    _, right = best(masks)
    others = [best(other)[1] for other in (masks.flip(1), masks.flip(2), masks.transpose(1, 2), masks.roll(1, 0))]
    assert right > 0.5 and max(others) < right - 0.2


def test_photographs_move_every_layer(model, photos):
    for values in activations(model, "mlp", photos.batch(range(16))):
        deviation = values.std(0)
        assert values.isfinite().all() and (deviation > 0).float().mean() > 0.99


@pytest.mark.parametrize("layer", [2, 6, 11])
def test_a_picture_is_alive_and_far_from_gray(model, photos, layer):
    """Neurons nobody chose: the middle one of each layer."""
    rendering = vv.Visualizer(model, vv.Recipe.fourier(), photos).render(layer, UNITS // 2)
    [picture] = rendering.pictures
    assert rendering.finished and rendering.scores.status == ["alive"], rendering.scores
    assert rendering.curves[0, -1] > rendering.curves[0, 0]
    assert 0 <= picture.min() and picture.max() <= 1
    assert picture.std((1, 2)).min() > 0.08, "near gray"
    assert picture.mean(0).std() > 0.08, "one color"
    # Natural pictures have most power at low frequencies: noise would be flat.
    spectrum = torch.fft.rfft2(picture - picture.mean((1, 2), keepdim=True)).abs().square().mean(0)
    assert spectrum[:10, :10].mean() > 30 * spectrum[40:80, 40:].mean()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_stays_in_its_bounds(model, photos, name):
    recipe = replace(vv.Recipe.named(name, model), steps=3)
    rendering = vv.Visualizer(model, recipe, photos, keep=False).render(5, [0, 700])
    assert rendering.pictures.isfinite().all() and 0 <= rendering.pictures.min() and rendering.pictures.max() <= 1
    assert all(map(torch.isfinite, torch.tensor(rendering.scores.activation)))


def test_top_images_have_maps_that_explain_them(model, photos):
    """A neuron's mean over the map is its activation for the image."""
    top = vv.top_images(model, 9, 300, images=photos)
    assert top.maps.shape == (6, *GRID)
    assert top.maps.mean((1, 2)).tolist() == pytest.approx(top.activations, rel=1e-3, abs=1e-4)
