"""Muon (Jordan et al. 2024), in float32 and for any torch that the kit runs on.

torch has one from 2.9 on, in bfloat16: where a CPU cannot multiply that, its step takes twenty times as long as this one's.
"""

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315  # the published coefficients
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update of a matrix is made orthogonal, so that all its directions are learned equally fast.

    Args:
        params: matrices.
        lr: as for AdamW, because updates are scaled to the same root mean square, 0.2 (Liu et al. 2025).
        weight_decay: decoupled, as AdamW's.
        momentum: Nesterov's.
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                kept = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(kept, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-0.2 * group["lr"] * max(p.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly the orthogonal matrix closest to ``matrix`` (M, N): its singular values become about 0.7 to 1.2."""
    x = matrix.float()
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.T if tall else x).to(matrix)
