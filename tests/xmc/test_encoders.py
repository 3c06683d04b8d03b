"""Law: an encoder gives each example the same vector whatever batch it is in, trains, and is the same after a save."""

import pytest
import torch

from gossamer.xmc.data import Csr
from gossamer.xmc.encoders import make, restore

TEXTS = ["a red apple on a table", "red wine", "", "pear, pear and pear", "table"]
FEATURES = Csr.from_lists([[1, 4], [], [0]], columns=6)
FEATURES = Csr(FEATURES.offsets, FEATURES.indices, torch.tensor([0.5, -2.0, 3.0]), FEATURES.shape)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A small BERT with a tokenizer of its own, as save_pretrained writes them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "apple", "wine", "pear", "table", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


CASES = ["words", "pairs", "features", "mean", "cls"]


@pytest.fixture(params=CASES)
def case(request, bert):
    """(encoder, examples)."""
    torch.manual_seed(0)
    made = {
        "words": lambda: (make("bow", width=8, features=64), TEXTS),
        "pairs": lambda: (make("bow", width=8, features=64, ngrams=2, relu=True), TEXTS),
        "features": lambda: (make("bow", given=6, width=8), FEATURES),
        "mean": lambda: (make(bert, max_length=8), TEXTS),
        "cls": lambda: (make(str(bert), pooling="cls", max_length=4), TEXTS),
    }
    encoder, examples = made[request.param]()
    encoder.learn(examples)
    return encoder.eval(), examples


def test_a_vector_does_not_depend_on_the_batch(case):
    encoder, examples = case
    inputs = encoder.prepare(examples)
    together = encoder(inputs)
    assert together.shape == (inputs.shape[0], encoder.width) and together.dtype == torch.float32
    for row in range(inputs.shape[0]):
        alone = encoder(inputs.take(torch.tensor([row])))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)
    swapped = encoder(inputs.take(torch.tensor([1, 0, 1])))
    torch.testing.assert_close(swapped, together[[1, 0, 1]], rtol=1e-5, atol=1e-6)


def test_it_learns(case):
    encoder, examples = case
    inputs = encoder.prepare(examples)
    target = torch.rand(inputs.shape[0], encoder.width)
    optimizer = encoder.optimizer(0.1 if encoder.kind == "bow" else 0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (encoder(inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_a_saved_one_is_the_same(case, tmp_path):
    encoder, examples = case
    encoder.save(tmp_path)
    again = restore(tmp_path, encoder.kind, encoder.settings()).eval()
    assert torch.equal(again(again.prepare(examples)), encoder(encoder.prepare(examples)))
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))


def test_words_weigh_as_scikit_learn_says():
    """The weights of a bag of words are those of TfidfTransformer, sublinear, smooth, of length 1."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    encoder = make("bow", width=2, features=128)
    encoder.learn(TEXTS)
    counts = text.HashingVectorizer(n_features=128, alternate_sign=False, norm=None).transform(TEXTS)
    expected = text.TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()
    found = encoder.prepare(TEXTS).to_scipy().toarray()
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_many_texts_are_counted_in_blocks(monkeypatch):
    encoder = make("bow", width=2, features=64)
    encoder.learn(TEXTS)
    whole = encoder.prepare(TEXTS), encoder.idf.clone()
    monkeypatch.setattr("gossamer.xmc.encoders.bow._BLOCK", 2)
    encoder.learn(iter(TEXTS))
    parts = encoder.prepare(iter(TEXTS))
    assert torch.equal(encoder.idf, whole[1])
    assert torch.equal(parts.offsets, whole[0].offsets) and torch.equal(parts.indices, whole[0].indices)
    assert torch.equal(parts.values, whole[0].values) and parts.shape == whole[0].shape
    assert encoder.prepare([]).shape == (0, 64)


def test_a_step_touches_the_words_of_its_batch_only():
    encoder = make("bow", width=4, features=64)
    optimizer = encoder.optimizer(0.1)
    before = encoder.weight.detach().clone()
    inputs = encoder.prepare(["red apple"])
    encoder(inputs).sum().backward()
    optimizer.step()
    moved = (encoder.weight != before).any(1).nonzero().flatten()
    assert 0 < len(moved) <= 2 and set(moved.tolist()) <= set(inputs.indices.tolist())


def test_a_frozen_encoder_has_an_optimizer_with_nothing_to_do(bert):
    encoder = make(bert).requires_grad_(False)
    encoder.optimizer(0.1).step()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"name": "nowhere"}, FileNotFoundError, "'nowhere'; expected a folder"),
        ({"name": "bow", "width": -1}, ValueError, "width must be an integer of at least 0, got -1"),
        ({"name": "bow", "width": 0, "words": 0}, ValueError, "width and words are both 0"),
        ({"name": "minilm", "given": 5}, ValueError, "reads texts"),
    ],
)
def test_what_cannot_be_made_is_named(arguments, error, said):
    with pytest.raises(error, match=said):
        make(**arguments)


def test_a_folder_without_weights_or_with_others_is_refused(bert, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        make(tmp_path)
    folder = tmp_path / "encoder"
    shutil.copytree(bert, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        make(folder)
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights encoder\.layer\.1\.output\.dense\.weight"):
        make(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        make(folder)


def test_texts_and_features_are_not_confused(bert):
    with pytest.raises(TypeError, match="reads features"):
        make("bow", given=6).prepare(TEXTS)
    with pytest.raises(TypeError, match="reads texts"):
        make("bow").prepare(FEATURES)
    with pytest.raises(TypeError, match="reads texts"):
        make(bert).prepare("one text")
