"""Benches: estimators beside other ways of computing the same gradient, one module each."""
