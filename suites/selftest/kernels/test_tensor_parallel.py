"""Kernels that communicate, on two real gloo processes."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.needs("torch")

PROGRAM = textwrap.dedent(
    """
    import os, sys
    import torch, torch.distributed as dist
    import torch.nn.functional as F
    from conformance.kernels import reference, standins

    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    group = dist.group.WORLD
    torch.manual_seed(9)
    whole = torch.randn(13, 40, dtype=torch.float64)
    labels = torch.randint(0, 40, (13,))
    labels[5] = -100
    part = whole[:, rank * 20 : rank * 20 + 20].clone().requires_grad_()
    loss = standins.CrossEntropyLoss(process_group=group)(part, labels)
    reference_logits = whole.clone().requires_grad_()
    expected = F.cross_entropy(reference_logits, labels)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(part.grad, reference_logits.grad[:, rank * 20 : rank * 20 + 20])

    mine = torch.full((4, 3), float(rank + 1), requires_grad=True)
    total = standins.MODULES["flash_attn.utils.distributed"]["all_reduce"](mine, group)
    torch.testing.assert_close(total, torch.full((4, 3), 3.0))
    total.sum().backward()
    torch.testing.assert_close(mine.grad, torch.ones(4, 3))

    layer = standins.ColumnParallelLinear(6, 8, group, bias=False)
    assert layer.weight.shape == (4, 6)
    assert standins.RowParallelLinear(6, 8, group, bias=True).weight.shape == (8, 3)
    try:
        standins.ColumnParallelLinear(6, 7, group)
    except ValueError as error:
        assert "does not divide" in str(error)
    else:
        raise SystemExit("7 features were split over 2 ranks")
    print("agreed", rank)
    """
)


def test_vocabulary_parallel_loss_and_collectives(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        output, _ = process.communicate(timeout=120)
        assert f"agreed {rank}" in output, output
