"""Muon: updates of matrices whose directions all count the same."""

import pytest
import torch

from vitviz_nb.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_a_matrix_becomes_nearly_the_closest_orthogonal_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(matrix) @ v.T  # the same directions, with singular values near 1
    assert (found - found.diag().diag()).abs().max() < 1e-3
    assert 0.6 < found.diag().min() and found.diag().max() < 1.3
    assert s.max() / s.min() > 2  # which was not so before


def test_a_matrix_of_zeros_stays_zero():
    assert orthogonal(torch.zeros(3, 5)).eq(0).all()


def test_first_step_is_worked_out_by_hand():
    # A diagonal gradient: momentum 0.05 g, Nesterov 0.05 g + 0.95 * 0.05 g, made orthogonal: both entries become equally long.
    weight = torch.nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    optimizer.step()
    same = orthogonal(torch.eye(2))[0, 0].item()
    assert 0.6 < same < 1.3
    wanted = 2 * (1 - 0.1 * 0.5) - 0.2 * 0.1 * 2**0.5 * same
    assert torch.allclose(weight.data, torch.eye(2) * wanted, atol=1e-5)
    assert torch.allclose(optimizer.state[weight]["momentum_buffer"], torch.eye(2) * 0.2)


def test_matrices_of_one_shape_move_together_as_each_would_alone():
    torch.manual_seed(1)
    starts, gradients = [torch.randn(4, 6) for _ in range(3)], [torch.randn(4, 6) for _ in range(3)]

    def moved(chosen: list[int]) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(starts[i].clone()) for i in chosen]
        optimizer = Muon(weights, lr=0.1, weight_decay=0.5)
        for _ in range(2):  # the second with momentum
            for weight, i in zip(weights, chosen, strict=True):
                weight.grad = gradients[i].clone()
            optimizer.step()
        return [weight.data for weight in weights]

    for i, together in enumerate(moved([0, 1, 2])):
        assert torch.allclose(together, moved([i])[0], atol=1e-5)
    assert not torch.allclose(moved([0])[0], starts[0], atol=1e-2)


def test_it_learns_a_linear_map():
    torch.manual_seed(0)
    inputs, truth = torch.randn(256, 8), torch.randn(8, 8)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.5, weight_decay=0.0)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / 200)
        loss = ((inputs @ weight - inputs @ truth) ** 2).mean()
        losses.append(loss.item())
        weight.grad = torch.autograd.grad(loss, weight)[0]
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]
