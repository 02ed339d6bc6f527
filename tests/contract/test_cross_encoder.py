"""Contract: a CrossEncoder scores the text, the same alone and in a batch, as computed by hand in float64."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from peft_hooks import add_prompt_adapter, check_padding_invariance, prompt_mask_hooks, register_prompt_mask_hooks
from peft_hooks.errors import UnsupportedModelError

from ..tools import cross
from ..tools.checks import RELEASE, TASK, break_graph, distance, interrupt, needs, options_for
from ..tools.methods import METHODS, NO_CACHE, Unavailable

FIRST = ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
LAST = ("gemma", "gpt2", "llama", "mistral", "opt", "phi3", "qwen3")


def adapted(
    architecture: str = "bert", method: str | None = "prompt_tuning", side: str = "right", **config: Any
) -> Any:
    """Build a tiny CrossEncoder with an adapter, or skip where the installed releases cannot."""
    task_type = config.pop("task_type", "SEQ_CLS")
    try:
        model = cross.tiny_cross_encoder(architecture, side, **config)
        if method is not None:
            cross.put_adapter(model, method, task_type)
    except Unavailable as error:
        pytest.skip(str(error))
    return model


def assert_scores(model: Any, **how: Any) -> None:
    """Assert that the scores are the reference's, in one batch and each pair alone."""
    truth = torch.stack([cross.reference_scores(model, pair, **how) for pair in cross.PAIRS])
    assert distance(cross.scores(model), truth) <= 1e-4
    assert distance(torch.cat([cross.scores(model, [pair]) for pair in cross.PAIRS]), truth) <= 1e-4


@pytest.mark.parametrize("architecture", FIRST)
def test_the_head_reads_the_texts_first_token(architecture: str) -> None:
    """An encoder's head gets the row of the text's [CLS], with the segment ids of the pair."""
    model = adapted(architecture)
    with prompt_mask_hooks(model):
        assert_scores(model)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", LAST)
def test_the_head_reads_the_texts_last_token(architecture: str, side: str) -> None:
    """A decoder's head gets the row of the text's last token, wherever the padding is."""
    model = adapted(architecture, side=side)
    with prompt_mask_hooks(model):
        assert_scores(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_every_method_is_right(architecture: str, method: str) -> None:
    """Methods that add rows and methods that go through the cache give the scores computed by hand."""
    if method == "lora":
        pytest.skip("LoRA adds no virtual tokens; nothing is computed by hand for a head that it wraps")
    model = adapted(architecture, method)
    try:
        handle = register_prompt_mask_hooks(model, **options_for(method))
    except UnsupportedModelError as error:  # PEFT 0.21 reads a signature, which transformers 5.24 wraps
        if "Model does not support past key values" not in str(error):
            raise
        pytest.skip(str(error))
    with handle:
        assert_scores(model, task_id=TASK)


def test_lora_is_left_alone() -> None:
    """With LoRA the scores with hooks are those without, to the last bit."""
    model = adapted("bert", None)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False)
    try:
        cross.put_backbone(model, get_peft_model(cross.backbone_of(model), config).eval())
    except TypeError:
        pytest.skip("PEFT 0.13 cannot make any SEQ_CLS adapter")
    before = cross.scores(model)
    with prompt_mask_hooks(model):
        assert torch.equal(cross.scores(model), before)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "albert"])
def test_pool_reads_the_first_position(architecture: str) -> None:
    """With virtual_tokens="pool" the head gets position 0, a virtual token, as without hooks."""
    model = adapted(architecture)
    before = cross.scores(model)
    with prompt_mask_hooks(model, virtual_tokens="pool"):
        assert_scores(model, virtual_tokens="pool")
        assert distance(cross.scores(model), before) <= 1e-5


@pytest.mark.parametrize("policy", ["ignore", "strip"])
def test_ignore_and_strip_read_the_text(policy: str) -> None:
    """A head that reads one row gets the text's with every policy but "pool"."""
    model = adapted("bert")
    with prompt_mask_hooks(model, virtual_tokens=policy):
        assert_scores(model)


def test_without_hooks_a_virtual_token_is_scored() -> None:
    """What this is about: with no hooks the head reads a virtual token, and a decoder's reads padding."""
    model = adapted("bert")
    truth = torch.stack([cross.reference_scores(model, pair) for pair in cross.PAIRS])
    assert distance(cross.scores(model), truth) > 0.1
    model = adapted("llama")
    alone = torch.cat([cross.scores(model, [pair]) for pair in cross.PAIRS])
    assert distance(cross.scores(model), alone.double()) > 0.1


def test_a_mean_over_all_rows_counts_virtual_tokens() -> None:
    """ModernBERT's mean counts virtual tokens with "auto", and refuses a policy that leaves them out."""
    model = adapted("modernbert", classifier_pooling="mean")
    with prompt_mask_hooks(model):
        assert_scores(model)
        with (
            pytest.raises(UnsupportedModelError, match="mean of all rows itself"),
            prompt_mask_hooks(model, virtual_tokens="strip"),
        ):
            pass
    with pytest.raises(UnsupportedModelError) as caught:
        register_prompt_mask_hooks(model, virtual_tokens="ignore")
    for part in ("ModernBertForSequenceClassification", "'ignore'", "PROMPT_TUNING", '"auto" or "pool"'):
        assert part in str(caught.value)


def test_a_task_type_that_drops_segment_ids_is_refused() -> None:
    """PEFT's FEATURE_EXTRACTION drops token_type_ids, so it is refused on BERT and right on RoBERTa, which has none."""
    model = adapted("bert", task_type="FEATURE_EXTRACTION")
    with pytest.raises(UnsupportedModelError) as caught:
        register_prompt_mask_hooks(model)
    for part in ("PeftModelForFeatureExtraction drops the segment ids", "'default'", 'task_type="SEQ_CLS"'):
        assert part in str(caught.value)
    model = adapted("roberta", task_type="FEATURE_EXTRACTION")
    with prompt_mask_hooks(model):
        assert_scores(model)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2", "distilbert"])
def test_left_padding_is_right_where_the_head_reads_the_first_row(architecture: str) -> None:
    """The text's own first row, not padding; the reference is of right-padded pairs, one at a time."""
    model = adapted(architecture, side="left")
    with prompt_mask_hooks(model):
        assert_scores(model)


def test_an_unknown_head_is_refused() -> None:
    """A classifier whose head is not known is refused by its name, with those that are known."""
    model = adapted("t5", decoder_start_token_id=1)
    with pytest.raises(UnsupportedModelError) as caught:
        register_prompt_mask_hooks(model)
    for part in ("T5ForSequenceClassification", "not known", "PROMPT_TUNING", "roberta"):
        assert part in str(caught.value)


@pytest.mark.parametrize("architecture", ["bart", "nomic_bert", "eurobert"])
def test_what_is_refused_on_an_unknown_head_is_not_advised_there(architecture: str) -> None:
    """Prompts are refused for the head, a prefix for the backbone: both say LoRA, which is right there."""
    from peft import LoraConfig

    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, **layers} if architecture == "bart" else {}
    needs(RELEASE >= (6, 2), "measured with transformers 5.23")
    for method, advice in (("prompt_tuning", "use LORA, which adds no rows"), ("prefix_tuning", ": use LORA")):
        model = adapted(architecture, method, **sizes)
        with pytest.raises(UnsupportedModelError) as caught:
            register_prompt_mask_hooks(model)
        assert advice in str(caught.value)
        assert not {"PREFIX_TUNING", "P_TUNING"} & set(str(caught.value).partition(" use ")[2].split())
    model = adapted(architecture, None, **sizes)
    add_prompt_adapter(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert check_padding_invariance(model, cross.PAIRS)


@pytest.mark.parametrize("architecture", NO_CACHE)
def test_a_prefix_that_peft_keeps_from_a_classifier_is_refused(architecture: str) -> None:
    """With ``SEQ_CLS`` PEFT raises before it calls the backbone, where no hook can do anything."""
    model = adapted(architecture, "prefix_tuning", **({"decoder_start_token_id": 1} if architecture == "t5" else {}))
    with pytest.raises(UnsupportedModelError, match="PREFIX_TUNING adapter 'default'") as caught:
        register_prompt_mask_hooks(model)
    named = 'task_type="FEATURE_EXTRACTION"' in str(caught.value)
    assert named == (architecture in WITHOUT_SEGMENTS), str(caught.value)


WITHOUT_SEGMENTS = ("mpnet", "distilbert", "modernbert")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", ["prefix_tuning", "cartridge"])
@pytest.mark.parametrize("architecture", WITHOUT_SEGMENTS)
def test_a_prefix_of_another_task_type_is_put_into_the_attention(architecture: str, method: str, side: str) -> None:
    """Where there are no segment ids that PEFT would drop: the head reads the text's first row."""
    model = adapted(architecture, method, side, task_type="FEATURE_EXTRACTION")
    try:
        handle = register_prompt_mask_hooks(model)
    except UnsupportedModelError as error:  # transformers 4: ModernBERT's classifier says how long the text is
        needs(architecture != "modernbert" or RELEASE >= (5, 4), str(error))
        raise
    with handle:
        assert_scores(model)


def test_a_cross_encoder_without_an_adapter_is_refused() -> None:
    """The message names the way to an adapter, as for any other model."""
    with pytest.raises(UnsupportedModelError, match="has no PEFT adapter"):
        register_prompt_mask_hooks(adapted("bert", None))


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_add_prompt_adapter_takes_the_task_type_of_the_backbone(architecture: str) -> None:
    """A config of no task type becomes one that keeps segment ids, and the scores are right at once."""
    from peft import PromptTuningConfig

    needs(RELEASE != (3, 2), "PEFT 0.13 cannot make any SEQ_CLS adapter")
    model = adapted(architecture, None)
    torch.manual_seed(0)
    handle = add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=3))
    cross.backbone_of(model).eval()
    assert type(cross.backbone_of(model)).__name__ == "PeftModelForSequenceClassification"
    assert_scores(model)
    handle.remove()


def test_a_refused_adapter_leaves_the_head_as_it_was() -> None:
    """If hooks are refused after SEQ_CLS wrapped the head, the classifier is as it was, to the module."""
    from peft import PromptTuningConfig

    model = adapted("bert", None)
    backbone = cross.backbone_of(model)
    children = dict(backbone.named_children())
    with pytest.raises((UnsupportedModelError, TypeError)):
        add_prompt_adapter(model, PromptTuningConfig(num_virtual_tokens=999))  # more than there are positions
    assert cross.backbone_of(model) is backbone
    assert all(dict(backbone.named_children())[name] is child for name, child in children.items())


def test_the_same_handle_and_its_removal() -> None:
    """A second call gives the same handle; after removal the scores are those of before."""
    model = adapted("bert")
    before = cross.scores(model)
    handle = register_prompt_mask_hooks(model)
    assert register_prompt_mask_hooks(model) is handle
    assert not torch.equal(cross.scores(model), before)
    handle.remove()
    assert torch.equal(cross.scores(model), before)


def test_hooks_travel_with_a_copy() -> None:
    """A deep copy and a pickled one score as the model does, and removing theirs leaves the model's."""
    model = adapted("bert")
    register_prompt_mask_hooks(model)
    twin = copy.deepcopy(model)
    assert distance(cross.scores(twin), cross.scores(model).double()) <= 1e-6
    register_prompt_mask_hooks(twin).remove()
    assert_scores(model)
    backbone = pickle.loads(pickle.dumps(cross.backbone_of(model)))
    cross.put_backbone(twin, backbone)
    if RELEASE < (5, 4):  # since then part of the hooks is on the Transformer module around it
        assert distance(cross.scores(twin), cross.scores(model).double()) <= 1e-6


def test_gradients_reach_the_prompt_and_equal_those_by_hand() -> None:
    """The gradient of a batch's scores is the sum over pairs scored alone without padding."""
    model = adapted("bert")
    prompt = cross.backbone_of(model).prompt_encoder["default"].embedding.weight

    def gradient(batches: list[list[tuple[str, str]]]) -> torch.Tensor:
        prompt.grad = None
        for batch in batches:
            features = model.tokenizer([list(pair) for pair in batch], padding=True, return_tensors="pt")
            found = model(dict(features))["scores"] if RELEASE >= (5, 4) else model.model(**features).logits
            found.square().sum().backward()
        return prompt.grad.clone()

    with prompt_mask_hooks(model):
        together, alone = gradient([list(cross.PAIRS)]), gradient([[pair] for pair in cross.PAIRS])
    assert together.abs().max() > 1e-3
    assert distance(together, alone) <= 1e-4


def test_max_length_makes_room_for_virtual_tokens() -> None:
    """Where text and virtual tokens exceed the positions, pairs are cut shorter, with a warning, until removal."""
    model = adapted("bert", max_position_embeddings=40)
    length = "max_seq_length" if RELEASE >= (5, 4) else "max_length"
    former = getattr(model, length)
    long = ("a cat " * 40, "the dog " * 40)
    with pytest.warns(UserWarning, match=r"max_seq_length is lowered from .* to 36"):
        handle = register_prompt_mask_hooks(model)
    assert cross.scores(model, [long]).shape == (1, cross.LABELS)
    handle.remove()
    assert getattr(model, length) in (former, model.tokenizer.model_max_length)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "cartridge"])
def test_a_reranker_by_logits_is_right(method: str, task_type: str) -> None:
    """A decoder that is scored by the logits after the text's last token gives the scores computed by hand."""
    needs(RELEASE >= (5, 4), "no LogitScore before 5.4")
    model = cross.tiny_reranker()
    cross.put_adapter(model, method, task_type)
    truth = torch.stack([cross.reference_logit_score(model, pair) for pair in cross.PAIRS])
    with prompt_mask_hooks(model):
        assert distance(cross.scores(model), truth) <= 1e-4
        assert distance(torch.cat([cross.scores(model, [pair]) for pair in cross.PAIRS]), truth) <= 1e-4


def test_after_ctrl_c_a_backbone_that_is_called_by_itself_gives_all_its_rows() -> None:
    """PyTorch runs no hook after a KeyboardInterrupt: how long that text was holds for no other."""
    model = adapted("bert")
    backbone = cross.backbone_of(model).base_model
    long = dict(model.tokenizer([["a cat", "the dog sleeps on the warm sofa " * 3]], return_tensors="pt"))
    with torch.no_grad():
        truth = backbone(**long).logits
        with prompt_mask_hooks(model):
            embeddings = backbone.base_model.embeddings
            with embeddings.register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt):
                cross.scores(model, [("a", "cat")])
            assert distance(backbone(**long).logits, truth.double()) <= 1e-6
            assert_scores(model)


@pytest.mark.usefixtures("clean_dynamo")
def test_the_hooks_add_no_graph_break() -> None:
    """A hooked encoder classifier is one graph for torch.compile, and scores the same."""
    needs(RELEASE >= (6, 0), "the backbones of older transformers break graphs themselves")
    model = adapted("bert")
    register_prompt_mask_hooks(model)
    features = dict(model.tokenizer([list(pair) for pair in cross.PAIRS], padding=True, return_tensors="pt"))
    compiled = torch.compile(lambda: model[0](dict(features))["scores"], backend="eager", fullgraph=True)
    with torch.no_grad():
        assert distance(compiled(), cross.scores(model).double()) <= 1e-5


@pytest.mark.usefixtures("clean_dynamo")
@pytest.mark.slow
def test_a_graph_that_breaks_inside_gives_the_same_scores() -> None:
    """What one hook notes for another holds on both sides of the break."""
    model = adapted("bert")
    register_prompt_mask_hooks(model)
    cross.backbone_of(model).base_model.base_model.embeddings.register_forward_hook(break_graph)
    features = dict(model.tokenizer([list(pair) for pair in cross.PAIRS], padding=True, return_tensors="pt"))

    def scored() -> Any:
        return model[0](dict(features))["scores"] if RELEASE >= (5, 4) else model.model(**features).logits

    with torch.no_grad():
        assert distance(torch.compile(scored, backend="eager")(), cross.scores(model).double()) <= 1e-5
