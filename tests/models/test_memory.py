"""Bytes that a training step keeps for backward, counted exactly, against a count by hand and the official code's."""

import pytest
import torch

from loopgrad.gradients import CheckpointedBPTT, TruncatedBPTT
from loopgrad.models import HRM, TRM, stablemax_cross_entropy

MIB = 2**20


def saved_bytes(model, inputs, estimator):
    """Bytes of the distinct storages packed for backward up to the loss, parameters left out."""
    own = {t.untyped_storage().data_ptr() for t in model.parameters()}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        logits = model(None, inputs, None, estimator).logits
        loss = stablemax_cross_entropy(logits, inputs).sum()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_a_block_keeps_eighteen_activations_per_position_and_feature():
    """q, k, v, attention's result, two norms, 4 + 4 + 4 of the SwiGLU (inner = 4 D); and the input of the net."""
    kept = []
    for cycles in (1, 2):
        model = TRM(5, 7, hidden_size=64, num_layers=1, num_heads=2, L_cycles=1, expansion=6, H_cycles=2)
        kept.append(saved_bytes(model, torch.zeros(3, 7, dtype=torch.int64), TruncatedBPTT(num_cycles=cycles)))
    positions, calls, heads = 3 * 7, 2, 2
    # one number per position for each norm, one per position and head for the softmax
    assert kept[1] - kept[0] == calls * positions * 4 * ((18 + 1) * 64 + 2 + heads)


@pytest.mark.parametrize(
    ("estimator", "official"),
    [(TruncatedBPTT(num_cycles=1), 231.9), (CheckpointedBPTT(schedule=1), 26.4)],
    ids=["last cycle", "a checkpoint per update"],
)
def test_trm_step_keeps_fewer_bytes_than_the_official_code(estimator, official):
    # official: measured in MiB at this size, for the exact gradient with torch.utils.checkpoint around each net call
    model = TRM(11, 81, hidden_size=128, num_heads=4)
    assert saved_bytes(model, torch.zeros(16, 81, dtype=torch.int64), estimator) < official * MIB


@pytest.mark.slow
def test_mlp_step_and_hrm_step_keep_fewer_bytes_than_the_official_code():
    inputs = torch.zeros(16, 81, dtype=torch.int64)
    mlp = TRM(11, 81, hidden_size=128, mixer="mlp")
    assert saved_bytes(mlp, inputs, TruncatedBPTT(num_cycles=1)) < 290.5 * MIB
    hrm = HRM(11, 81, hidden_size=128, num_heads=4)
    assert saved_bytes(hrm, inputs, TruncatedBPTT(num_steps=2)) < 134.6 * MIB
