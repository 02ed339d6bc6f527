"""``share_prompt="keep"``: what was computed of the prompt is used in the next forwards, and never when it is stale."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer

import peft_hooks
from peft_hooks import prompt_mask_hooks, register_prompt_mask_hooks, trace_shapes
from peft_hooks.prompts.sharing import EncodePromptOnce, SharePrompt

from ..tools.checks import TEXTS, assert_right, distance, encoded, expected, forward, needs, options_for, with_pooling
from ..tools.matrix import POOLINGS
from ..tools.methods import VIRTUAL_TOKENS, backbone_of
from ..tools.sharing import BATCH, DECODERS, EVERY_ROW, METHODS, ONCE, layers_of, look, put_second, remark, runs
from ..tools.wording import assert_says

AGAIN = [(BATCH, 0)]  # what runs where the prompt is kept: the text


@contextlib.contextmanager
def keeping(model: Any, **options: Any) -> Iterator[Any]:
    with prompt_mask_hooks(model, share_prompt="keep", **options) as handle:
        yield handle


def kept_by(handle: Any) -> list[Any]:
    """Return what each hook keeps."""
    hooks = [attached.hook for attached in handle.registry.state.hooks.values()]
    return [hook._kept for hook in hooks if isinstance(hook, (SharePrompt, EncodePromptOnce))]


# --- the same embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", DECODERS)
def test_embeddings_are_those_made_by_hand_with_the_virtual_tokens_computed_once_in_all(
    architecture: str, method: str, shared: Any
) -> None:
    """In one batch and each text alone: a batch of one row uses what is kept, too."""
    model, options = shared(architecture, "left", method), options_for(method)
    with keeping(model, **options) as handle, runs(model) as seen:
        encoded(model)
        encoded(model)
        assert seen == [*ONCE, *AGAIN]
        assert_right(model, tolerance=1e-5, task_id=options.get("task_id"))
        assert [rows for rows, _ in seen[3:]] == [BATCH] + [1] * BATCH
        assert_says(remark(handle), "once for all rows | kept between forwards")


@pytest.mark.parametrize("policy", ["auto", "pool", "ignore", "strip"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_and_policy_is_right(pooling: str, policy: str, shared: Any) -> None:
    model = with_pooling(shared("qwen2", "left", "prompt_tuning"), pooling)
    with keeping(model, virtual_tokens=policy):
        encoded(model)
        assert_right(model, pooling=pooling, virtual_tokens=policy)


def test_one_row_computes_the_prompt_once_for_those_that_follow(shared: Any) -> None:
    """A search service embeds one query at a time."""
    model = shared("llama", "left", "prompt_tuning")
    with keeping(model), runs(model, length=1000) as seen:
        for text in TEXTS[:3]:
            encoded(model, [text])
    assert [rows for rows, _ in seen] == [1] * 4
    assert [positions for _, positions in seen].count(VIRTUAL_TOKENS) >= 1


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_what_one_kind_of_inference_keeps_the_other_may_use(block: Any, adapted: Any) -> None:
    """And neither what comes out nor its gradients depend on it."""
    model = adapted("llama", padding_side="left")
    features = dict(model.tokenize(list(TEXTS)))
    truth = expected(model)
    with keeping(model):
        with block():
            model(dict(features))
        for other in (torch.no_grad, torch.inference_mode):
            with other():
                assert distance(model(dict(features))["sentence_embedding"], truth) <= 1e-5
        trained = model(dict(features))["sentence_embedding"]
        trained.sum().backward()
        assert distance(trained.detach(), truth) <= 1e-5


@pytest.mark.parametrize("window", [6, 12])
def test_a_sliding_window_is_kept(window: int, adapted: Any) -> None:
    model = adapted("mistral", sliding_window=window)
    with keeping(model):
        for _ in range(3):
            assert_right(model)


def test_hidden_states_come_out_when_they_are_asked_for(adapted: Any) -> None:
    """What was kept without them does not do."""
    model = adapted("qwen2", padding_side="left")
    features = model.tokenize(list(TEXTS))
    with keeping(model):
        forward(model, dict(features))
        backbone_of(model).base_model.config.output_hidden_states = True
        found = [forward(model, dict(features))["all_layer_embeddings"] for _ in range(2)]
    with prompt_mask_hooks(model, share_prompt=False):
        truth = forward(model, dict(features))["all_layer_embeddings"]
    for layers in found:
        assert len(layers) == len(truth)
        assert max(distance(*pair) for pair in zip(layers, truth)) <= 1e-5


def test_a_caller_who_changes_what_comes_out_changes_nothing_that_is_kept(adapted: Any) -> None:
    model = adapted("llama", padding_side="left")
    with keeping(model), torch.no_grad():
        for _ in range(2):
            model[0](dict(model.tokenize(list(TEXTS[:1]))))["token_embeddings"].zero_()
        assert_right(model)


# --- what changes is computed anew ------------------------------------------------------------------------------------


def weight_of_layer(model: Any) -> Any:
    return next(module for module in layers_of(model)[0].modules() if isinstance(module, nn.Linear)).weight


def prompt_of(model: Any) -> Any:
    return backbone_of(model).prompt_encoder["default"].embedding.weight


def steps_optimizer(model: Any) -> None:
    weights = [weight_of_layer(model).requires_grad_(), prompt_of(model)]
    adam = torch.optim.AdamW(weights, lr=0.3)
    model(dict(model.tokenize(list(TEXTS))))["sentence_embedding"].sin().sum().backward()
    adam.step()


def steps_optimizer_outside(model: Any) -> None:
    """Without a forward with gradients in between."""
    weight = weight_of_layer(model).requires_grad_()
    weight.grad = torch.randn_like(weight)
    torch.optim.SGD([weight], lr=0.3).step()


def steps_fused(weight: Any) -> None:
    """As the trainer does by default: it writes to weights, whose versions stay as they are."""
    weight.requires_grad_()
    weight.grad = torch.randn_like(weight)
    torch.optim.AdamW([weight], lr=0.3, fused=True).step()


def steps_fused_optimizer_of_layer(model: Any) -> None:
    steps_fused(weight_of_layer(model))


def steps_fused_optimizer_of_prompt(model: Any) -> None:
    steps_fused(prompt_of(model))


def other_state(model: Any) -> dict[str, Tensor]:
    state = backbone_of(model).state_dict()
    return {name: value * 1.5 if value.dim() == 2 else value.clone() for name, value in state.items()}


def loads_state(model: Any) -> None:
    backbone_of(model).load_state_dict(other_state(model))


def assigns_state(model: Any) -> None:
    backbone_of(model).load_state_dict(other_state(model), assign=True)


def copies_into_layer(model: Any) -> None:
    with torch.no_grad():
        weight_of_layer(model).copy_(torch.randn_like(weight_of_layer(model)) / 4)


def copies_into_prompt(model: Any) -> None:
    with torch.no_grad():
        prompt_of(model).copy_(torch.randn_like(prompt_of(model)))


def adds_in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        weight_of_layer(model).mul_(2)


def puts_other_data(model: Any) -> None:
    weight = weight_of_layer(model)
    weight.data = weight.data * 2


def puts_other_data_twice(model: Any) -> None:
    """So that an address may be one that was there before."""
    weight = weight_of_layer(model)
    for _ in range(3):
        weight.data = weight.data * 1.3


def transposes_data(model: Any) -> None:
    weight = next(module.weight for module in layers_of(model)[0].modules() if is_square(module))
    weight.data = weight.data.t()


def is_square(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.in_features == module.out_features


def puts_other_parameter(model: Any) -> None:
    linear = next(module for module in layers_of(model)[0].modules() if isinstance(module, nn.Linear))
    linear.weight = nn.Parameter(linear.weight.detach() * 2)


def puts_other_module(model: Any) -> None:
    layers = layers_of(model)
    layers[0].mlp.down_proj = nn.Sequential(layers[0].mlp.down_proj, nn.Tanh())


def swaps_layers(model: Any) -> None:
    layers = layers_of(model)
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp


def writes_to_buffer(model: Any) -> None:
    """All of a kind: transformers 4.45 has some that nothing reads any more."""
    for name, buffer in backbone_of(model).base_model.named_buffers():
        if "inv_freq" in name:
            buffer.mul_(0.5)


def changes_attribute(model: Any) -> None:
    norm = next(module for module in layers_of(model)[0].modules() if hasattr(module, "variance_epsilon"))
    norm.variance_epsilon = 5.0


def hooks_layer(model: Any) -> None:
    layers_of(model)[0].mlp.register_forward_hook(lambda module, args, output: output * 2)


def hooks_prompt(model: Any) -> None:
    encoder = backbone_of(model).prompt_encoder["default"]
    encoder.register_forward_hook(lambda module, args, output: output * 2)


def doubles(model: Any) -> None:
    model.double()


def halves(model: Any) -> None:
    model.bfloat16()


def adds_lora(model: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, backbone_of(model).base_model)
    model.eval()


CHANGES: tuple[Callable[[Any], None], ...] = (
    steps_optimizer,
    steps_optimizer_outside,
    steps_fused_optimizer_of_layer,
    steps_fused_optimizer_of_prompt,
    loads_state,
    assigns_state,
    copies_into_layer,
    copies_into_prompt,
    adds_in_inference_mode,
    puts_other_data,
    puts_other_data_twice,
    transposes_data,
    puts_other_parameter,
    puts_other_module,
    swaps_layers,
    writes_to_buffer,
    changes_attribute,
    hooks_layer,
    hooks_prompt,
    doubles,
    halves,
    adds_lora,
)


def plain_rows(model: Any, **options: Any) -> Tensor:
    with prompt_mask_hooks(model, share_prompt=False, **options):
        return rows_of(model)


def rows_of(model: Any) -> Tensor:
    """Return every row of the texts' hidden states: those of the virtual tokens among them."""
    return forward(model, dict(model.tokenize(list(TEXTS[1:2]))))["token_embeddings"].double()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_no_row_is_stale(change: Any, method: str, adapted: Any) -> None:
    """Rows are those of a model that keeps nothing, and they did move."""
    model, options = adapted("llama", method, padding_side="left"), options_for(method)
    with keeping(model, **options):
        before = rows_of(model)
        assert torch.equal(rows_of(model), before)
        change(model)
        found = rows_of(model)
        again = rows_of(model)
        truth = plain_rows(model, **options)
    exact = 5e-2 * float(truth.abs().max()) if change is halves else 1e-4
    assert distance(found, truth) <= exact
    assert distance(again, truth) <= exact
    assert change in (doubles, halves) or distance(found, before) > 1e-3


def test_a_lora_inside_that_is_scaled_or_switched_off_is_seen(adapted: Any) -> None:
    """A number and a name in the layers, of which no tensor tells."""
    model = adapted("llama", padding_side="left")
    adds_lora(model)
    layer = next(module for module in layers_of(model)[0].modules() if hasattr(module, "lora_A"))
    with keeping(model):
        found = [rows_of(model)]
        for change in (lambda: layer.scaling.update(default=7.0), lambda: layer.enable_adapters(False)):
            change()
            found.append(rows_of(model))
            assert distance(found[-1], plain_rows(model)) <= 1e-5
            assert distance(found[-1], found[-2]) > 1e-4


def test_autocast_and_its_end_are_seen(adapted: Any) -> None:
    model = adapted("llama", padding_side="left")
    with keeping(model), runs(model) as seen:
        exact = encoded(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encoded(model)
        assert torch.equal(encoded(model), exact)
    assert seen == [*ONCE] * 3
    assert 0 < distance(rough.float(), exact) < 0.5


def test_dropout_in_training_is_not_kept_and_nothing_of_before_is_used_after(adapted: Any) -> None:
    """In training mode, though without gradients."""
    model = adapted("qwen2", attention_dropout=0.1)
    with keeping(model), runs(model) as seen, torch.no_grad():
        features = dict(model.tokenize(list(TEXTS)))
        for training in (False, True, False, False):
            model.train(training)
            model(dict(features))
    assert seen == [*ONCE, *EVERY_ROW, *AGAIN, *AGAIN] or seen == [*ONCE, *EVERY_ROW, *ONCE, *AGAIN]


def test_each_adapter_has_its_own(adapted: Any) -> None:
    """Switching between them computes nothing again, and one that is deleted leaves nothing behind."""
    model = adapted("qwen2", padding_side="left")
    put_second(model)
    with keeping(model) as handle:
        for name in ("default", "second", "default", "second"):
            backbone_of(model).set_adapter(name)
            assert_right(model)
        with runs(model) as seen:
            for name in ("default", "second"):
                backbone_of(model).set_adapter(name)
                encoded(model)
            encoded(model)
        assert seen[-1:] == AGAIN
        (kept,) = kept_by(handle)
        assert len(kept) == 2
        with peft_hooks.without_adapter(model), runs(model) as seen:
            encoded(model)
        assert seen == AGAIN


def test_each_task_has_its_own(adapted: Any) -> None:
    """A block with another task begins anew, and the one around it goes on."""
    model = adapted("llama", "multitask_prompt_tuning", padding_side="left")
    with keeping(model, task_id=0) as handle:
        assert_right(model, task_id=0)
        with handle.switched(task_id=2):
            assert_right(model, task_id=2)
        with runs(model) as seen:
            assert_right(model, task_id=0)
        assert seen[0][0] == 1


def test_in_training_nothing_is_kept(adapted: Any) -> None:
    """With gradients, each step computes its own; and they are the plain ones."""
    model = adapted("llama", padding_side="left")
    features = dict(model.tokenize(list(TEXTS)))
    found = []
    for share in (False, "keep"):
        with prompt_mask_hooks(model, share_prompt=share) as handle, runs(model) as seen:
            encoded(model)
            for _ in range(2):
                model.zero_grad()
                model(dict(features))["sentence_embedding"].sin().sum().backward()
            found.append(prompt_of(model).grad.clone())
            assert share is False or [len(kept) for kept in kept_by(handle)] == [0]
    assert seen == ONCE * 3
    assert distance(*found) <= 1e-5 * max(1.0, float(found[0].abs().max()))


def test_weights_that_tell_no_version_are_not_kept(adapted: Any) -> None:
    """Made in inference mode: nothing would show that they were written to."""
    model = adapted("llama", padding_side="left")
    with torch.inference_mode():
        linear = next(module for module in layers_of(model)[0].modules() if isinstance(module, nn.Linear))
        linear.weight = nn.Parameter(linear.weight.clone(), requires_grad=False)
    with keeping(model), runs(model) as seen:
        assert distance(encoded(model), encoded(model)) <= 1e-6
        assert seen == [*ONCE, *ONCE]


def test_after_a_write_that_nothing_shows_refresh_computes_anew(adapted: Any) -> None:
    """What the option asks of its user."""
    model = adapted("llama", padding_side="left")
    handle = register_prompt_mask_hooks(model, share_prompt="keep")
    encoded(model)
    weight_of_layer(model).data.mul_(2)
    handle.refresh()
    assert_right(model)


# --- networks ---------------------------------------------------------------------------------------------------------

NETWORKS = ("p_tuning", "p_tuning_lstm", "multitask_prompt_tuning", "prefix_tuning_projection")


class Notes(nn.Module):
    """Notes how many rows go through."""

    def __init__(self, inner: nn.Module, note: Callable[[int], None]) -> None:
        super().__init__()
        self.inner, self.note = inner, note

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, indices: Tensor) -> Tensor:
        self.note(indices.shape[0])
        return self.inner(indices)  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", NETWORKS)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_network_runs_on_no_row_again(architecture: str, method: str, adapted: Any) -> None:
    """On encoders, too; until its weights change."""
    model, options = adapted(architecture, method), options_for(method)
    encoder = backbone_of(model).prompt_encoder["default"]
    rows: list[int] = []
    with keeping(model, **options):
        inner, encoder.embedding = encoder.embedding, Notes(encoder.embedding, rows.append)
        for texts in (TEXTS, TEXTS, TEXTS[:1]):
            encoded(model, texts)
        assert rows == [1, 0, 0]
        encoder.embedding = inner
        assert_right(model, task_id=options.get("task_id"))
        with torch.no_grad():
            inner.weight.mul_(1.5)
        assert_right(model, task_id=options.get("task_id"))


# --- life -------------------------------------------------------------------------------------------------------------


def test_a_network_or_a_layer_that_is_watched_runs(adapted: Any) -> None:
    model = adapted("llama", "p_tuning")
    calls: list[int] = []
    with keeping(model):
        encoded(model)
        encoder = backbone_of(model).prompt_encoder["default"].embedding
        with encoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[0])):
            encoded(model)
            encoded(model)
        with runs(model) as seen, layers_of(model)[0].register_forward_hook(look):
            encoded(model)
        assert seen == EVERY_ROW
        with trace_shapes(model) as trace, runs(model) as seen:
            encoded(model)
        assert seen == EVERY_ROW
        assert trace.failure is None
        assert_right(model)
    assert calls == [1, 1]


@pytest.mark.parametrize("how", ["remove", "refresh", "block"])
def test_what_is_kept_goes(how: str, adapted: Any) -> None:
    """With the hooks, and with a refresh; and so does what waited for the steps of optimizers."""
    model = adapted("llama", padding_side="left")
    gc.collect()
    waiting = {*optimizer._global_optimizer_post_hooks}
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(prompt_mask_hooks(model, share_prompt="keep"))
        encoded(model)
        (kept,) = kept_by(handle)
        tensor = weakref.ref(next(iter(kept._entries.values())).made.output["last_hidden_state"])
        assert tensor() is not None
        assert {*optimizer._global_optimizer_post_hooks} - waiting
        del kept
        if how != "block":
            getattr(handle, how)()
            gc.collect()
            assert tensor() is None
    gc.collect()
    assert tensor() is None
    assert not {*optimizer._global_optimizer_post_hooks} - waiting


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_begins_with_nothing(how: Any, adapted: Any) -> None:
    """And keeps its own."""
    model = adapted("llama", padding_side="left")
    register_prompt_mask_hooks(model, share_prompt="keep")
    size = len(pickle.dumps(model))
    encoded(model)
    assert len(pickle.dumps(model)) < size + 200
    copied = how(model)
    with torch.no_grad():
        weight_of_layer(copied).mul_(2)
    with runs(copied) as seen:
        assert_right(copied)
        encoded(copied)
    assert seen[:2] == ONCE
    assert seen[-1:] == AGAIN
    handle = register_prompt_mask_hooks(copied, share_prompt="keep")
    assert [len(kept) for kept in kept_by(handle)] == [1]


def test_threads_keep_one_for_all(shared: Any) -> None:
    model = shared("llama", "left", "p_tuning")
    batches = [model.tokenize(list(TEXTS[:number])) for number in range(1, BATCH + 1)]
    with prompt_mask_hooks(model, share_prompt=False):
        truth = [forward(model, dict(given))["sentence_embedding"] for given in batches]
    with keeping(model), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda given: forward(model, dict(given))["sentence_embedding"], batches * 8))
    for number, embedding in enumerate(found):
        assert distance(embedding, truth[number % BATCH]) <= 1e-5


def test_a_replica_keeps_nothing(adapted: Any) -> None:
    """It is there for one forward."""
    model = adapted("llama")
    with keeping(model) as handle, torch.no_grad():
        encoded(model)
        replica = copy.copy(backbone_of(model).base_model)
        replica._is_replica = True
        from peft_hooks.prompts.kept import is_keeping

        assert is_keeping(backbone_of(model).base_model)
        assert not is_keeping(replica)
        assert len(kept_by(handle)[0]) == 1


def test_it_is_saved_and_loaded(tmp_path: Any, adapted: Any) -> None:
    model = adapted("llama", path=tmp_path / "base")
    register_prompt_mask_hooks(model, share_prompt="keep")
    truth = encoded(model)
    peft_hooks.save(model, tmp_path / "tuned")
    again = peft_hooks.load(tmp_path / "tuned", device="cpu")
    with runs(again) as seen:
        for _ in range(2):
            assert distance(encoded(again), truth) <= 1e-6
    assert seen == [*ONCE, *AGAIN]


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_an_encoder_computes_every_row_and_says_so(architecture: str, shared: Any) -> None:
    """As with "auto": its virtual tokens see the text."""
    model = shared(architecture, "right", "prompt_tuning")
    with keeping(model) as handle:
        assert "computed for every row: " in remark(handle)
        assert_right(model)
        assert_right(model)


def test_on_a_gpu_nothing_is_stale_either(adapted: Any) -> None:
    """There the prompt's rows are not looked at."""
    needs(torch.cuda.is_available(), "no GPU")
    model = adapted("llama", "p_tuning", padding_side="left")
    with keeping(model):
        before = rows_of(model)
        model.to("cuda")
        assert distance(rows_of(model).cpu(), before) <= 1e-4
        for change in (copies_into_prompt, copies_into_layer, puts_other_data, steps_optimizer):
            change(model)
            assert distance(rows_of(model), plain_rows(model)) <= 1e-4
