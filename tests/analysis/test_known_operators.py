"""What is known of an operator is what FakeTensorMode says of it, call by call; what could differ is asked anew."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from loopgrad.analysis.known_operators import KnownOperators


class Calling(TorchDispatchMode):
    def __init__(self, known):
        super().__init__()
        self.known, self.asked = known, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}

        def counted(*args, **kwargs):
            self.asked.append(func)
            return func(*args, **kwargs)

        counted.__dict__.update(_schema=func._schema, tags=func.tags, namespace=func.namespace, is_view=func.is_view)
        return self.known(OPERATORS.setdefault(func, counted), args, kwargs) if self.known else func(*args, **kwargs)


OPERATORS: dict = {}


def told(tensor):
    storage = tensor.untyped_storage()
    kind = tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device, storage.nbytes()
    return kind, tensor.requires_grad


MAPS = {
    "linear": lambda x: F.linear(x, torch.ones(5, 6), torch.ones(5)),
    "norm": lambda x: F.layer_norm(x, (6,)) + F.rms_norm(x, (6,)),
    "views": lambda x: x.t()[1:, ::2].unsqueeze(0).expand(3, 5, 2).transpose(1, 2),
    "slices": lambda x: x[:, 3:] * x[:, :3] + x.select(1, 2).unsqueeze(1),
    "split": lambda x: torch.cat([part.sigmoid() for part in x.split([2, 4], dim=1)], dim=1).view(2, 12),
    "types": lambda x: x.bfloat16() @ x.bfloat16().t() + x.double().sum(),
    "numbers": lambda x: (x + 1) * 2.0 - x.pow(2) + torch.where(x > True, x, 0) / 3,
    "permuted": lambda x: (x.view(2, 2, 6).permute(2, 0, 1) + 1).clone(),
    "contiguous": lambda x: x.t().contiguous().reshape(3, 8),
    "in place": lambda x: x.clone().mul_(2).add_(x),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.view(1, 2, 2, 6)] * 3),
    "empty": lambda x: torch.cat([x[:0], x]) + x[:0].sum(),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.view(4, 3, 2)).conj() * 1j),
    "dropout": lambda x: F.dropout(x, 0.5) + torch.rand_like(x),
    "integers": lambda x: x.argmax(1) + torch.arange(4),
    "embedding": lambda x: F.embedding(x.argmax(1), x),
    "gru": lambda x: nn.GRUCell(6, 6)(x, x),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(4, 6), "transposed"])
def test_results_are_those_of_torchs_own_mode_and_gradients_too(name, shape):
    found = []
    for known in (False, True):
        with FakeTensorMode() as mode, Calling(KnownOperators(mode) if known else None):
            for _ in range(2):  # first met, then known
                x = torch.zeros(6, 4).t() if shape == "transposed" else torch.zeros(*shape)
                x = x.contiguous() if name in ("permuted", "attention", "complex") else x
                x = x.detach().requires_grad_()
                out = MAPS[name](x)
                made = [told(out)]
                if out.dtype.is_floating_point:
                    made.append(told(torch.autograd.grad(out.sum(), x)[0]))
                shares = out.untyped_storage()._cdata == x.untyped_storage()._cdata
                found.append((made, shares))
    assert found[0] == found[1] == found[2] == found[3]


def test_an_operator_is_called_once_for_each_kind_of_arguments():
    OPERATORS.clear()
    with FakeTensorMode() as mode, Calling(KnownOperators(mode)) as calling:
        x, y = torch.zeros(3, 4), torch.zeros(4, 3)
        calling.asked.clear()
        for _ in range(5):
            x.mm(y)
            x.add(1), x.add(1.0), x.add(True)  # of other types
            y.t()
            x.mul_(2)  # writes
    names = [func.__name__ for func in calling.asked]
    assert names.count("mm.default") == names.count("t.default") == 1
    assert names.count("add.Tensor") == 3 and names.count("mul_.Tensor") == 5


def test_a_view_goes_with_the_tensor_that_it_is_of():
    with FakeTensorMode() as mode, Calling(KnownOperators(mode)):
        pairs = [(x, x[1:].view(-1)) for x in (torch.zeros(3, 4), torch.zeros(3, 4))]
        for x, view in pairs:
            assert view.untyped_storage()._cdata == x.untyped_storage()._cdata and view.storage_offset() == 4
            x.add_(1)
            assert view._version == x._version
