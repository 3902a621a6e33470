"""A language model of characters, trained under every estimator: loss against bytes and FLOPs."""

from loopgrad.experiments.benches.text.study import LanguageModels as LanguageModels
