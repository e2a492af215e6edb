"""Muon (Jordan et al. 2024), in float32 and for any torch that the kit runs on.

Not torch's own (from 2.9 on), which casts the updates to bfloat16: the embedded models could not be trained again as they were,
and where a CPU cannot multiply bfloat16, its step takes twenty times as long.
"""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov's) with orthogonalized updates of matrices, so that all their directions are learned equally fast.

    ``lr`` and ``weight_decay`` are as for AdamW: updates are scaled to the same root mean square, 0.2 (Liu et al. 2025).
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient, those of one shape together, because launching is what costs on a GPU."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                for p in params:
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffers, gradients = [self.state[p]["momentum_buffer"] for p in params], [p.grad for p in params]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                updates = orthogonal(torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"])))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(updates), alpha=-0.2 * group["lr"] * max(shape) ** 0.5)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """About the closest orthogonal matrix to each of ``matrices`` (..., M, N): singular values become 0.7 to 1.2 or so."""
    x = matrices.float()
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x  # the published coefficients
    return (x.mT if tall else x).to(matrices)
