"""Models for sequences against loops written out by hand and torch's own layers, under every exact estimator."""

import pytest
import torch
from sequence_models import HIDDEN, LENGTH, MODELS, VOCAB, batch, gradients, hand_logits, hand_loss, scored

from loopgrad.analysis.counters import SavedBytes
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    ForwardGradient,
    ImplicitGradient,
    RandomTruncation,
    ReversibleBPTT,
    TruncatedBPTT,
)
from loopgrad.models import (
    GRU,
    LSTM,
    LoopedTransformer,
    NeuralTuringMachine,
    softmax_cross_entropy,
    stablemax_cross_entropy,
)

every_model = pytest.mark.parametrize("name", MODELS)
EXACT = {"bptt": BPTT(), "checkpointed": CheckpointedBPTT(), "all": TruncatedBPTT(num_steps=LENGTH)}


def same(found, expected, rtol=1e-10):
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=rtol, atol=rtol)


@every_model
@pytest.mark.parametrize("estimator", EXACT.values(), ids=EXACT)
def test_loss_and_gradients_equal_a_loop_by_hand(name, estimator):
    model, (inputs, labels) = MODELS[name]().double(), batch()
    logits = hand_logits(name, model, inputs)
    expected, found = hand_loss(logits, labels), scored(model, estimator, inputs, labels)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    exact = gradients(expected, model)
    same(gradients(found.loss, model), exact)
    assert exact.keys() == dict(model.named_parameters()).keys()
    right = (logits[-1].argmax(-1) == labels).sum(1)
    assert torch.equal(found.accuracy * (labels >= 0).sum(1), right.float())
    assert torch.equal(found.solved, right == (labels >= 0).sum(1))
    answer = model(None, inputs, None, estimator).logits
    torch.testing.assert_close(answer, logits[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["gru", "lstm", "ntm"])
def test_truncated_windows_equal_a_loop_that_detaches(name):
    model, (inputs, labels) = MODELS[name]().double(), batch(length=6)
    expected = hand_loss(hand_logits(name, model, inputs, window=3), labels)
    found = scored(model, TruncatedBPTT(num_steps=3), inputs, labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    windowed = gradients(expected, model)
    same(gradients(found, model), windowed)
    exact = gradients(scored(model, BPTT(), inputs, labels).loss, model)
    assert not torch.allclose(exact["embedding.tokens.weight"], windowed["embedding.tokens.weight"])


@pytest.mark.parametrize("cls, layer", [(GRU, torch.nn.GRU), (LSTM, torch.nn.LSTM)])
def test_recurrent_models_are_the_layers_of_torch(cls, layer):
    model, (inputs, labels) = cls(VOCAB, LENGTH, HIDDEN, num_layers=3).double(), batch()
    theirs = layer(HIDDEN, HIDDEN, num_layers=3, batch_first=True).double()
    named = {f"{key}_l{i}": p for i, cell in enumerate(model.cell.layers) for key, p in cell.named_parameters()}
    theirs.load_state_dict({key: p.detach() for key, p in named.items()})
    h = theirs(model.embedding(inputs, None))[0]
    expected = hand_loss([torch.nn.functional.linear(h, model.lm_head.weight, model.lm_head.bias)], labels)
    found = scored(model, CheckpointedBPTT(), inputs, labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(found, [named[key] for key in dict(theirs.named_parameters())])
    for mine, grad in zip(ours, torch.autograd.grad(expected, list(theirs.parameters())), strict=True):
        torch.testing.assert_close(mine, grad, rtol=1e-10, atol=1e-12)


COUPLED = [("gru", "damped"), ("lstm", "momentum"), ("looped", "leapfrog"), ("looped", "damped")]


@pytest.mark.parametrize("name, coupling", COUPLED)
def test_coupled_models_have_one_gradient_under_bptt_and_reversible(name, coupling):
    model, (inputs, labels) = MODELS[name](coupling=coupling).double(), batch()
    exact = gradients(scored(model, BPTT(), inputs, labels).loss, model)
    found = gradients(scored(model, ReversibleBPTT(), inputs, labels).loss, model)
    same(found, exact, rtol=1e-13)


def test_a_damped_gru_is_the_damped_recursion_of_the_layer_by_hand():
    model, (inputs, labels) = GRU(VOCAB, LENGTH, HIDDEN, coupling="damped", coupling_rate="1/4").double(), batch()
    x, layer = model.embedding(inputs, None), model.cell.cell.layers[0]
    before = z = x.new_zeros(len(x), HIDDEN)
    logits = []
    for t in range(LENGTH):
        before, z = z, 0.75 * before + 0.25 * layer(x[:, t], z)
        logits.append(z @ model.lm_head.weight.T + model.lm_head.bias)
    expected = hand_loss([torch.stack(logits, 1)], labels)
    found = scored(model, ReversibleBPTT(), inputs, labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)  # its states are multiples of 2^-32
    same(gradients(found, model), gradients(expected, model), rtol=1e-7)


@every_model
def test_an_answer_depends_on_no_later_token(name):
    model, (inputs, _) = MODELS[name](), batch()
    other = inputs.clone()
    other[:, 4] = (other[:, 4] + 1) % VOCAB
    one, two = (model(None, tokens, None, BPTT()).logits for tokens in (inputs, other))
    assert torch.equal(one[:, :4], two[:, :4])
    assert not torch.equal(one[:, 4], two[:, 4]) and not torch.equal(one[:, 6], two[:, 6])


@pytest.mark.parametrize("positions", ["rope", "none"])
def test_equal_tokens_are_told_apart_by_their_number_behind_a_start_alone(positions):
    equal = torch.ones(1, LENGTH, dtype=torch.int64)
    sizes = {"num_heads": 1, "positions": positions}
    bare, started = (LoopedTransformer(VOCAB, None, HIDDEN, start_token=it, **sizes).double() for it in (False, True))
    answer = bare(None, equal, None, BPTT()).logits[0]
    torch.testing.assert_close(answer, answer[:1].expand_as(answer), rtol=1e-12, atol=1e-12)
    answer = started(None, equal, None, BPTT()).logits[0]
    assert (answer[1:] - answer[:-1]).norm(dim=-1).min() > 1e-3


@every_model
def test_random_estimators_run_and_what_has_the_last_state_alone_is_refused(name):
    model, (inputs, labels) = MODELS[name](), batch()
    expected = scored(model, BPTT(), inputs, labels).loss
    for estimator in (RandomTruncation(mean_steps=3, seed=0), ForwardGradient(2, seed=0)):
        found = scored(model, estimator, inputs, labels).loss
        torch.testing.assert_close(found, expected)
        assert all(map(torch.isfinite, (grad.sum() for grad in gradients(found, model).values())))
    with pytest.raises(ValueError, match="ImplicitGradient has the gradient of the last state alone"):
        scored(model, ImplicitGradient(), inputs, labels)


def test_the_loss_of_the_last_loop_alone_is_that_of_the_answer():
    model, (inputs, labels) = MODELS["looped"](loss="last_loop").double(), batch()
    found = scored(model, BPTT(), inputs, labels)
    torch.testing.assert_close(found.loss, hand_loss(hand_logits("looped", model, inputs)[-1:], labels))
    scored(model, ImplicitGradient(), inputs, labels).loss.backward()


@pytest.mark.parametrize("loss", ["every_loop", "last_loop"])
def test_samples_of_their_own_number_of_loops_have_the_loss_of_each_alone(loss):
    model, (inputs, labels) = MODELS["looped"](loss=loss).double(), batch()
    loops = torch.tensor([2, 4, 1])
    arguments = (None, labels, CheckpointedBPTT(), softmax_cross_entropy)
    found = model.scored(None, inputs, *arguments, loops)
    alone = [
        model.scored(None, inputs[i : i + 1], None, labels[i : i + 1], BPTT(), softmax_cross_entropy, int(count))
        for i, count in enumerate(loops)
    ]
    expected = sum(one.loss for one in alone) / 3
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.output.logits, torch.cat([one.output.logits for one in alone]))
    same(gradients(found.loss, model), gradients(expected, model))
    assert not torch.isclose(found.loss, scored(model, BPTT(), inputs, labels).loss)
    for wrong, error in ((0, TypeError), (torch.tensor([1, 0, 1]), ValueError), (torch.ones(3), TypeError)):
        with pytest.raises(error, match="depth"):
            model(None, inputs, None, BPTT(), wrong)


def held(model, estimator, inputs, labels):
    counter = SavedBytes([*model.parameters(), inputs, labels])
    with counter:
        loss = scored(model, estimator, inputs, labels).loss  # noqa: F841 (its graph is what is counted)
    return counter.held()


def test_a_loss_of_every_loop_takes_no_memory_per_loop_when_reversible():
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "coupling": "leapfrog"}
    models = [LoopedTransformer(VOCAB, LENGTH, num_loops=loops, **sizes) for loops in (4, 32)]
    short, long = (held(model, ReversibleBPTT(), *batch()) for model in models)
    assert short == long < held(models[0], BPTT(), *batch())


def test_a_token_of_a_reversible_gru_costs_its_own_vector_and_no_logits():
    model = GRU(200, 16, 8, coupling="leapfrog")
    short, long = (held(model, ReversibleBPTT(), *batch(length=length)) for length in (16, 64))
    assert long - short == (64 - 16) * 3 * 8 * 4  # x alone: length, batch, features, bytes


def test_weights_and_first_states_are_those_of_the_seed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name, build in MODELS.items():
        one, same_, other = build(seed=1), build(seed=1), build(seed=2)
        assert all(map(torch.equal, one.parameters(), same_.parameters())), name
        assert not torch.equal(one.embedding.tokens.weight, other.embedding.tokens.weight)
        state = one.initial_state(2, LENGTH)
        assert one.state_size(LENGTH) == sum(z[0].numel() for z in state.values())
        assert {z.shape[0] for z in state.values()} == {2}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("cls", [GRU, LSTM, NeuralTuringMachine, LoopedTransformer])
def test_wrong_sizes_and_puzzle_identities_are_refused(cls):
    with pytest.raises(ValueError, match="hidden_size"):
        cls(5, 7, hidden_size=0)
    with pytest.raises(ValueError, match=f"{cls.__name__} has no puzzle identities, and the task has 3"):
        cls(5, 7, hidden_size=8, num_puzzles=3)
    for name, value in {"slots": 2, "num_loops": 0, "loss": "no", "coupling": "no"}.items():
        if name in cls.__init__.__code__.co_varnames:
            with pytest.raises(ValueError, match=name):
                cls(5, 7, hidden_size=8, **{name: value})


def test_losses_in_float64_of_every_loop_go_with_tangents_through_a_float32_transformer():
    model = LoopedTransformer(7, 16, hidden_size=64, num_heads=4, num_layers=1, num_loops=4)
    tokens = torch.randint(7, (16, 16), generator=torch.Generator().manual_seed(0))
    estimator = ForwardGradient(num_tangents=1, seed=0)
    model.scored(None, tokens, None, tokens, estimator, stablemax_cross_entropy).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
