"""The references against PyTorch's own functions in fp64, and faults injected into them."""

import pytest

pytestmark = pytest.mark.needs("torch")

LENGTHS = [1, 7, 33, 64]
HEADS, KV_HEADS, DIM = 8, 2, 16


@pytest.fixture(autouse=True)
def imported():
    """Importing torch takes seconds, which collecting the tests need not wait for."""
    global torch, F, fast, reference, standins
    import torch
    import torch.nn.functional as F

    from conformance.kernels import fast, reference, standins


def packed(seed, dtype=None):
    torch.manual_seed(seed)
    dtype = dtype or torch.float64
    tokens = sum(LENGTHS)
    q = torch.randn(tokens, HEADS, DIM, dtype=dtype, requires_grad=True)
    kv = torch.randn(tokens, 2, KV_HEADS, DIM, dtype=dtype, requires_grad=True)
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    return q, kv, bounds


def torch_attention(q, kv, bounds):
    """Each document alone through PyTorch's attention, key and value heads repeated for their group."""
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, dim=1) for part in kv.unbind(1))
    pieces = [
        F.scaled_dot_product_attention(*(part[a:b].transpose(0, 1) for part in (q, k, v)), is_causal=True).transpose(
            0, 1
        )
        for a, b in zip(bounds.tolist(), bounds.tolist()[1:], strict=False)
    ]
    return torch.cat(pieces)


def ours(q, kv, bounds):
    longest = max(LENGTHS)
    return standins.flash_attn_varlen_kvpacked_func(q, kv, bounds, bounds, longest, longest, causal=True)


def test_attention_forward_and_backward_agree_with_pytorch():
    q, kv, bounds = packed(1)
    expected, got = torch_attention(q, kv, bounds), ours(q, kv, bounds)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(expected)
    for want, have in zip(
        torch.autograd.grad((expected * weights).sum(), (q, kv)),
        torch.autograd.grad((got * weights).sum(), (q, kv)),
        strict=True,
    ):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("fault", ["heads in the wrong group", "documents see each other", "not causal", "wrong scale"])
def test_a_faulty_attention_does_not_agree(fault):
    q, kv, bounds = packed(2)
    expected = torch_attention(q, kv, bounds)
    k, v = kv.unbind(1)
    whole = torch.tensor([0, sum(LENGTHS)], dtype=torch.int32)
    faulty = {
        "heads in the wrong group": lambda: reference.varlen_attention(
            q, k.flip(1), v.flip(1), bounds, bounds, causal=True
        ),
        "documents see each other": lambda: reference.varlen_attention(q, k, v, whole, whole, causal=True),
        "not causal": lambda: reference.varlen_attention(q, k, v, bounds, bounds, causal=False),
        "wrong scale": lambda: reference.varlen_attention(q, k, v, bounds, bounds, causal=True, softmax_scale=0.3),
    }[fault]()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(faulty, expected)


def test_bf16_attention_computes_in_fp32():
    q, kv, bounds = packed(3, torch.bfloat16)
    exact = ours(q.double(), kv.double(), bounds)
    got = ours(q, kv, bounds)
    assert got.dtype == torch.bfloat16
    # One rounding to bf16 at the end, 2^-9 relative; bf16 softmax would be several times worse.
    assert ((got.double() - exact).norm() / exact.norm()).item() < 2**-8


def test_dropout_is_refused():
    q, kv, bounds = packed(4)
    with pytest.raises(NotImplementedError, match="dropout"):
        standins.flash_attn_varlen_kvpacked_func(q, kv, bounds, bounds, 64, 64, dropout_p=0.1)


def test_rotary_is_a_rotation_and_its_backward_rotates_back():
    torch.manual_seed(5)
    x = torch.randn(1, 9, 4, DIM, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(9, DIM // 2, dtype=torch.float64)
    y = standins.ApplyRotaryEmb.apply(x, angle.cos(), angle.sin())
    as_complex = torch.complex(*x.detach().chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle)[:, None, :]
    torch.testing.assert_close(y.detach(), torch.cat([as_complex.real, as_complex.imag], dim=-1))
    (grad,) = torch.autograd.grad(y, x, y.detach())
    torch.testing.assert_close(grad, x.detach())


def test_cross_entropy_agrees_with_pytorch_and_ignores_what_it_should():
    torch.manual_seed(6)
    logits = torch.randn(11, 40, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 40, (11,))
    labels[3] = -100
    loss = standins.CrossEntropyLoss()(logits, labels)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


def test_linear_and_its_weight_gradient_agree_with_pytorch():
    torch.manual_seed(7)
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    got = standins.FusedDenseFunc.apply(x, weight, bias)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(expected)
    for want, have in zip(
        torch.autograd.grad(expected, (x, weight, bias), upstream),
        torch.autograd.grad(got, (x, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(have, want)
    grad_weight, grad_bias = reference.linear_wgrad(x.reshape(-1, 12), upstream.reshape(-1, 6), True)
    torch.testing.assert_close(grad_weight, torch.autograd.grad(F.linear(x, weight, bias), weight, upstream)[0])
    torch.testing.assert_close(grad_bias, upstream.reshape(-1, 6).sum(0))


def test_rms_norm_and_scatter_agree_with_pytorch():
    torch.manual_seed(8)
    x, weight = torch.randn(4, 10, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    mean_square = x.pow(2).mean(-1, keepdim=True)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5), x / (mean_square + 1e-5).sqrt() * weight)
    values, index = torch.randn(20), torch.randint(0, 4, (20,))
    torch.testing.assert_close(standins.scatter(values, index), torch.bincount(index, values).float())


@pytest.mark.parametrize(
    "name", ["flash_attn.modules.mlp.ParallelFusedMLP", "flash_attn.ops.layer_norm.dropout_add_layer_norm"]
)
def test_a_placeholder_can_be_imported_and_not_used(name):
    module, attribute = name.rsplit(".", 1)
    with pytest.raises(NotImplementedError, match=attribute):
        standins.MODULES[module][attribute]()


def test_the_fused_norm_that_stands_in_agrees_with_the_reference():
    torch.manual_seed(3)
    norm = standins.MixedFusedRMSNorm(DIM, eps=1e-5).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    x = torch.randn(7, DIM, dtype=torch.float64, requires_grad=True)
    expected = reference.rms_norm(x, norm.weight, 1e-5)
    torch.testing.assert_close(norm(x), expected)
    up = torch.randn_like(expected)
    for want, have in zip(
        torch.autograd.grad(expected, (x, norm.weight), up),
        torch.autograd.grad(norm(x), (x, norm.weight), up),
        strict=True,
    ):
        torch.testing.assert_close(have, want)


def test_a_fused_norm_with_another_epsilon_does_not_agree():
    x = torch.full((1, DIM), 1e-3)
    norm = standins.MixedFusedRMSNorm(DIM, eps=1e-5)
    assert not torch.allclose(norm(x), reference.rms_norm(x, norm.weight, 1e-6))


def test_a_platform_that_cannot_compile_runs_the_function_as_it_stands(monkeypatch, caplog):
    def refuse(function, **options):
        def call(*args):
            raise RuntimeError("no C compiler")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    double = fast.compiled(lambda x: 2 * x)
    assert double(3) == 6
    assert double(4) == 8
    assert caplog.text.count("no C compiler") == 1


def test_what_compiles_is_what_runs(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda x: "fused")
    run = fast.compiled(lambda x: "plain")
    assert [run(1), run(2)] == ["fused", "fused"]
