"""Reference gradients beside finite differences and float64 autograd; the module is left as it was."""

import copy

import pytest
import torch
from torch import nn

from loopgrad.analysis import cast, compare_gradients, compare_with_bptt, gradients_of, reference_gradients
from loopgrad.gradients import BPTT, CheckpointedBPTT, ImplicitGradient, ReversibleBPTT, Stationary, TruncatedBPTT
from loopgrad.models import Damped


class Net(nn.Module):
    """A recursion with tied weights, a frozen one, an unused one, a buffer, and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.linear, self.twin, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.twin.weight = self.linear.weight
        self.frozen.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.linspace(0, 1, 3))
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z):
        for _ in range(3):
            z = torch.tanh(self.linear(z) + self.twin(self.frozen(z)) + self.get_buffer("shift"))
        return self.dropout(self.norm(z))


X = torch.linspace(-1, 1, 12).reshape(4, 3)


def loss_of(net):
    return net(X.to(net.linear.weight.dtype)).square().mean() + net(X.to(net.shift.dtype))[0, 0]


def net_with(dropout=0.0):
    torch.manual_seed(1)
    return Net(dropout)


def test_reference_equals_autograd_of_a_module_that_was_float64_from_the_start():
    net = net_with()
    twin = copy.deepcopy(net).double()
    loss_of(twin).backward()
    found = reference_gradients(loss_of, net)
    expected = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    assert found["unused"] is None and "frozen.weight" not in found and "twin.weight" not in found
    for name, gradient in expected.items():
        if gradient is not None:
            assert found[name].dtype == torch.float64
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)


def test_reference_equals_central_differences():
    net = net_with()
    found = reference_gradients(loss_of, net)["linear.weight"]
    double = copy.deepcopy(net).double()
    step, numeric = 1e-6, torch.zeros(3, 3, dtype=torch.float64)
    with torch.no_grad():
        for i in range(3):
            for j in range(3):
                ends = []
                for sign in (1, -1):
                    double.linear.weight[i, j] += sign * step
                    ends.append(loss_of(double))
                    double.linear.weight[i, j] -= sign * step
                numeric[i, j] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(found, numeric, rtol=1e-7, atol=1e-9)  # step^2 and eps / step


def test_reference_leaves_the_module_and_the_generator_as_they_were():
    net = net_with(dropout=0.5)
    net.linear.weight.grad = torch.ones(3, 3)
    tensors = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers())}
    values = {name: (tensor.clone(), tensor._version) for name, tensor in tensors.items()}
    rng = torch.get_rng_state()
    reference_gradients(loss_of, net)
    after = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers())}
    assert torch.equal(rng, torch.get_rng_state())
    for name, tensor in after.items():
        assert tensor is tensors[name]
        assert torch.equal(tensor, values[name][0]) and tensor._version == values[name][1]
    assert torch.equal(net.linear.weight.grad, torch.ones(3, 3)) and net.linear.bias.grad is None


def test_the_module_is_put_back_when_the_loss_fails():
    net = net_with()
    weight = net.linear.weight
    with pytest.raises(ZeroDivisionError):
        reference_gradients(lambda module: 1 / 0, net)
    assert net.linear.weight is weight and net.twin.weight is weight


def test_dropout_draws_the_same_masks_in_the_reference_and_in_the_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Tanh(), nn.Linear(64, 3), nn.Dropout(0.5))

    def loss(own):
        return own(X.to(own[0].weight.dtype)).square().mean()

    exact = reference_gradients(loss, net)
    assert compare_gradients(gradients_of(loss, net), exact).relative_error < 1e-6  # float32
    torch.manual_seed(1)
    assert compare_gradients(gradients_of(loss, net), exact).relative_error > 0.1  # other masks


def test_gradients_of_equals_backward_and_touches_no_grad():
    net = net_with()
    found = gradients_of(loss_of, net)
    assert all(p.grad is None for p in net.parameters())
    loss_of(net).backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert (found[name] is None) == (parameter.grad is None)
            if parameter.grad is not None:
                torch.testing.assert_close(found[name], parameter.grad)


def test_gradients_are_available_under_no_grad():
    net = net_with()
    with torch.no_grad():
        assert gradients_of(loss_of, net)["linear.weight"] is not None
        assert reference_gradients(loss_of, net)["linear.weight"] is not None


def test_reference_reaches_a_module_that_the_cell_closes_over():
    torch.manual_seed(0)
    linear = nn.Linear(3, 3)
    cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)

    def loss(own):
        x = cast(X, next(own.parameters()).dtype)
        return BPTT()(own, x * 0, x, 5).state.square().sum()

    double = copy.deepcopy(linear).double()
    z = X.double() * 0
    for _ in range(5):
        z = torch.tanh(double(z) + X.double())
    z.square().sum().backward()
    found = reference_gradients(loss, cell)
    for (_, gradient), expected in zip(found.items(), double.parameters(), strict=True):
        torch.testing.assert_close(gradient, expected.grad, rtol=1e-12, atol=0)


def test_reference_follows_a_recurrent_module_that_lists_its_weights_twice():
    torch.manual_seed(0)
    gru = nn.GRU(3, 3)
    expected = copy.deepcopy(gru).double()
    expected(X.double()[None])[0].sum().backward()
    found = reference_gradients(lambda own: own(X.to(own.weight_ih_l0.dtype)[None])[0].sum(), gru)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-12, atol=0)
    gru(X[None])[0].sum().backward()
    assert gru.weight_ih_l0.grad.dtype == torch.float32


def test_a_parameter_reached_by_a_closure_over_the_tensor_is_in_float64_as_well():
    weight, plain = nn.Parameter(torch.tensor(1 / 3)), torch.tensor(0.1, requires_grad=True)
    cell = Stationary(lambda z, x: weight * z.square() + plain, parameters=[weight, plain])
    own, shift = weight.detach().double().requires_grad_(), plain.detach().double()
    z = torch.ones(2, dtype=torch.float64)
    for _ in range(3):
        z = own * z.square() + shift
    z.sum().backward()
    ones = torch.ones(2, dtype=torch.float64)
    found = reference_gradients(lambda cell: BPTT()(cell, ones, None, 3).state.sum(), cell)
    torch.testing.assert_close(found["loose_parameters.0"], own.grad, rtol=1e-15, atol=0)
    assert weight.dtype == plain.dtype == torch.float32 and weight.grad is None and plain.grad is None


def test_a_parameter_that_an_autograd_function_alone_reads_is_refused():
    class Times(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight, z):
            ctx.save_for_backward(z)
            return weight * z

        @staticmethod
        def backward(ctx, gradient):
            (z,) = ctx.saved_tensors
            return (gradient * z).sum(), None

    weight, ones = nn.Parameter(torch.tensor(0.5)), torch.ones(2, dtype=torch.float64)
    cell = Stationary(lambda z, x: Times.apply(weight, z), parameters=[weight])
    with pytest.raises(ValueError, match="through an autograd.Function.*run the eager module"):
        reference_gradients(lambda own: own(ones, None, 0).sum(), cell)


def test_a_loss_in_another_dtype_is_refused():
    class Narrow(nn.Linear):
        def forward(self, input):
            return super().forward(input).float()

    with pytest.raises(TypeError, match="cast the batch and the carry"):
        reference_gradients(lambda own: own(X.to(own.weight.dtype)).sum(), Narrow(3, 3))


def test_what_has_no_gradient_is_refused():
    frozen = nn.Linear(3, 3).requires_grad_(False)
    for function in (gradients_of, reference_gradients):
        with pytest.raises(ValueError, match="no parameter that requires grad"):
            function(lambda own: own(X).sum(), frozen)
        with pytest.raises(ValueError, match="scalar tensor that requires grad"):
            function(lambda own: own(cast(X, own.weight.dtype)), nn.Linear(3, 3))


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(
    "estimator", [CheckpointedBPTT(), CheckpointedBPTT(1), ReversibleBPTT(), ImplicitGradient(rtol=1e-13, max_vjps=60)]
)
def test_estimators_run_on_the_copies_too(estimator, hooked):
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.mul_(0.5)
    if hooked:
        linear.weight.register_hook(lambda gradient: gradient)
    x = torch.randn(3, 4, dtype=torch.float64)

    def loss(module, chosen):
        cell = Stationary(lambda z, x: torch.tanh(module(z) + x), parameters=module)
        cell = Damped(cell, dtype=torch.float64) if isinstance(estimator, ReversibleBPTT) else cell
        return chosen(cell, torch.zeros(3, 4, dtype=torch.float64), x, 60).state.square().sum()

    found = reference_gradients(lambda module: loss(module, estimator), linear)
    wide = copy.deepcopy(linear).double()
    exact = torch.autograd.grad(loss(wide, BPTT()), list(wide.parameters()))
    for mine, theirs in zip(found.values(), exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert linear.weight.dtype == torch.float32 and linear.weight.grad is None


def test_compare_with_bptt_tells_exact_estimators_from_a_truncated_one():
    torch.manual_seed(0)
    # z <- w z + 1 from 0, three times: z_3 = w^2 + w + 1, so 2 w + 1 = 2 in full, and z_2 = w + 1 by one step
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, 0.5)
    cell = Stationary(lambda z, x: linear(z) + x, parameters=linear)

    def loss(own, estimator):
        ones = torch.ones(1, 1, dtype=next(own.parameters()).dtype)
        return estimator(own, ones * 0, ones, 3).state.sum()

    estimators = {"full": BPTT(), "checkpointed": CheckpointedBPTT(), "one": TruncatedBPTT(num_steps=1)}
    result = compare_with_bptt(estimators, loss, cell)
    assert result["full"].relative_error == result["checkpointed"].relative_error == 0.0
    assert result["one"].norm_ratio == pytest.approx(1.5 / 2)
    assert result["one"].cosine == pytest.approx(1.0)
