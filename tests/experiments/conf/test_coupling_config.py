"""Reversible recursions by configuration alone."""


def test_reversible_without_a_coupling_is_refused_before_anything_is_written(refused, tmp_path):
    message = refused("train", "experiment=smoke", "estimator=reversible", f"output_dir={tmp_path}/run")
    assert "model.coupling=damped" in message
    assert not (tmp_path / "run").exists()
