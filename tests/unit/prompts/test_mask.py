"""``ExtendPromptMask`` and ``PreparePooling`` on hand-made tensors, expected values worked out by hand."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from peft_hooks import Call, DimensionError, ExtendPromptMask, HookRegistry, PreparePooling, PutPaddingLast

from ...tools.wording import Golden, assert_says

POLICIES = ["auto", "pool", "ignore", "strip"]
DTYPES = [torch.int64, torch.int32, torch.bool, torch.float32, torch.uint8]

# Two texts of three and two tokens. V1 V2 stand for virtual tokens' rows, 9x for rows of padding.
RIGHT = [[1, 1, 1, 0], [1, 1, 0, 0]]
LEFT = [[0, 1, 1, 1], [0, 0, 1, 1]]
RIGHT_ROWS = [[71, 72, 11, 12, 13, 91], [71, 72, 21, 22, 92, 93]]
LEFT_ROWS = [[71, 72, 91, 11, 12, 13], [71, 72, 92, 93, 21, 22]]


def embed(rows: list[list[int]]) -> Tensor:
    """Token embeddings ``[batch, seq, 2]``: each number, and the same with the sign turned."""
    return torch.tensor([[[float(number), -float(number)] for number in row] for row in rows])


def numbers(embeddings: Tensor) -> Any:
    """Back from ``embed``, with the second component checked."""
    assert torch.equal(embeddings[..., 1], -embeddings[..., 0])
    return embeddings[..., 0].to(torch.int64).tolist()


def features_of(mask: list[list[int]], **more: Any) -> dict[str, Any]:
    return {
        "input_ids": torch.zeros(len(mask), len(mask[0]), dtype=torch.int64),
        "attention_mask": torch.tensor(mask),
        **more,
    }


def transform(hook: ExtendPromptMask, features: Any, output: dict[str, Any], module: nn.Module | None = None) -> Any:
    """Run the hook around a Transformer that adds ``output`` to the dict that it gets, in place."""
    call = Call(module or nn.Identity(), "0", (features,), {})
    hook.before(call)
    call.first.update(output)
    replaced = hook.after(call, call.first)
    return call.first if replaced is None else replaced


def hook_with(policy: Any = "auto", expected: Any = 2) -> ExtendPromptMask:
    return ExtendPromptMask(policy, expected=expected)


# -- ExtendPromptMask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "mask", "rows"),
    [
        ("auto", [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], RIGHT_ROWS),
        ("pool", [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], RIGHT_ROWS),
        ("ignore", [[0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]], RIGHT_ROWS),
        ("strip", RIGHT, [[11, 12, 13, 91], [21, 22, 92, 93]]),
    ],
)
def test_each_policy_makes_the_mask_as_long_as_the_embeddings(policy: str, mask: Any, rows: Any) -> None:
    output = transform(hook_with(policy), features_of(RIGHT), {"token_embeddings": embed(RIGHT_ROWS)})
    assert output["attention_mask"].tolist() == mask
    assert numbers(output["token_embeddings"]) == rows


def test_a_left_padded_mask_is_extended_before_its_padding() -> None:
    output = transform(hook_with(), features_of(LEFT), {"token_embeddings": embed(LEFT_ROWS)})
    assert output["attention_mask"].tolist() == [[1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mask_keeps_its_dtype(policy: str, dtype: torch.dtype) -> None:
    given = features_of(RIGHT)
    given["attention_mask"] = given["attention_mask"].to(dtype)
    output = transform(hook_with(policy), given, {"token_embeddings": embed(RIGHT_ROWS)})
    front = {"auto": [1, 1], "pool": [1, 1], "ignore": [0, 0], "strip": []}[policy]
    assert output["attention_mask"].dtype is dtype
    assert output["attention_mask"].to(torch.int64).tolist() == [front + row for row in RIGHT]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_mask_keeps_its_device_and_no_value_is_read(policy: str) -> None:
    given = {key: tensor.to("meta") for key, tensor in features_of(RIGHT).items()}
    output = transform(hook_with(policy), given, {"token_embeddings": embed(RIGHT_ROWS).to("meta")})
    assert output["attention_mask"].device.type == "meta"
    assert output["attention_mask"].shape == output["token_embeddings"].shape[:2]


@pytest.mark.parametrize("builtin", [torch.ones(2, 6), torch.ones(2, 6, dtype=torch.int64)])
def test_what_a_release_made_of_the_mask_itself_is_made_from_the_callers_again(builtin: Tensor) -> None:
    """3.3 to 6.1 extend it themselves, as float32."""
    output = transform(
        hook_with(), features_of(RIGHT), {"token_embeddings": embed(RIGHT_ROWS), "attention_mask": builtin}
    )
    assert output["attention_mask"].dtype is torch.int64
    assert output["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_mask_that_is_too_long_is_cut_back_to_the_callers(policy: str) -> None:
    """3.3 to 6.1 extend it for prefix tuning, too, which adds no rows."""
    given = features_of(RIGHT)
    rows = [row[2:] for row in RIGHT_ROWS]
    output = transform(hook_with(policy), given, {"token_embeddings": embed(rows), "attention_mask": torch.ones(2, 6)})
    assert output["attention_mask"] is given["attention_mask"]
    assert numbers(output["token_embeddings"]) == rows


@pytest.mark.parametrize("policy", POLICIES)
def test_without_virtual_rows_everything_stays(policy: str) -> None:
    """LoRA, prefix methods, a switched-off adapter: whatever was expected."""
    given = features_of(RIGHT)
    embeddings = embed([row[2:] for row in RIGHT_ROWS])
    output = transform(hook_with(policy, expected=10), given, {"token_embeddings": embeddings})
    assert output["attention_mask"] is given["attention_mask"]
    assert output["token_embeddings"] is embeddings
    assert sorted(output) == ["attention_mask", "input_ids", "token_embeddings"]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_callers_features_stay_and_a_second_pass_gives_the_same(policy: str) -> None:
    given = features_of(RIGHT)
    before = dict(given)
    output = {"token_embeddings": embed(RIGHT_ROWS), "all_layer_embeddings": (embed(RIGHT_ROWS),)}
    first = transform(hook_with(policy), given, output)
    assert list(given) == list(before)
    assert all(given[key] is before[key] for key in before)
    second = transform(hook_with(policy), given, output)
    assert first["attention_mask"].tolist() == second["attention_mask"].tolist()
    assert numbers(first["token_embeddings"]) == numbers(second["token_embeddings"])


def test_features_that_come_out_go_in_again_with_the_same_result() -> None:
    """AdaptiveLayerLoss hands a Transformer's output to the next module only; others hand the features in twice."""
    given = features_of(RIGHT)
    first = transform(hook_with("strip"), given, {"token_embeddings": embed(RIGHT_ROWS)})
    again = transform(hook_with("strip"), first, {"token_embeddings": embed(RIGHT_ROWS)})
    assert again["attention_mask"].tolist() == RIGHT
    assert numbers(again["token_embeddings"]) == numbers(first["token_embeddings"])


@pytest.mark.parametrize(("policy", "cut"), [("strip", True), ("auto", False), ("pool", False), ("ignore", False)])
def test_strip_cuts_every_hidden_state_and_the_others_none(policy: str, cut: bool) -> None:
    layers = (embed(RIGHT_ROWS), embed([[number + 100 for number in row] for row in RIGHT_ROWS]))
    output = transform(
        hook_with(policy), features_of(RIGHT), {"token_embeddings": layers[1], "all_layer_embeddings": layers}
    )
    assert isinstance(output["all_layer_embeddings"], tuple)
    assert [numbers(layer)[0] for layer in output["all_layer_embeddings"]] == (
        [[11, 12, 13, 91], [111, 112, 113, 191]] if cut else [[71, 72, 11, 12, 13, 91], [171, 172, 111, 112, 113, 191]]
    )


def test_fewer_rows_than_tokens_are_an_error_that_says_so(golden: Golden) -> None:
    with pytest.raises(DimensionError) as caught:
        transform(hook_with(expected=None), features_of(RIGHT), {"token_embeddings": embed([[1, 2, 3], [1, 2, 3]])})
    golden("refusals", caught.value)
    assert_says(
        caught.value,
        "Identity '0' | token_embeddings | [2, 3, 2] | 4 tokens | 1 position fewer | no PEFT adapter",
        "`with peft_hooks.HookRegistry(model).attached(LogShapes(), to='**')`",
    )


class Adapted(nn.Module):
    """A stand-in for a Transformer with a prompt adapter."""

    def __init__(self, method: str = "PROMPT_TUNING", virtual_tokens: int = 10, prompt: bool = True) -> None:
        super().__init__()
        self.model = nn.Identity()
        self.model.active_adapter = "default"  # type: ignore[assignment]
        self.model.active_peft_config = SimpleNamespace(  # type: ignore[assignment]
            peft_type=method, num_virtual_tokens=virtual_tokens, is_prompt_learning=prompt
        )


def test_another_number_of_rows_than_the_adapter_adds_is_an_error_that_names_it(golden: Golden) -> None:
    with pytest.raises(DimensionError) as caught:
        transform(ExtendPromptMask(), features_of(RIGHT), {"token_embeddings": embed(RIGHT_ROWS)}, Adapted())
    golden("refusals", caught.value)
    assert_says(
        caught.value,
        "Adapted '0' | token_embeddings | [2, 6, 2] | 4 tokens | 2 positions more | active PROMPT_TUNING | 'default'",
        "adds 10 | `with peft_hooks.HookRegistry(model).attached(LogShapes(), to='**')`",
    )


def test_the_number_of_rows_that_the_adapter_adds_is_right() -> None:
    output = transform(
        ExtendPromptMask(), features_of(RIGHT), {"token_embeddings": embed(RIGHT_ROWS)}, Adapted(virtual_tokens=2)
    )
    assert output["attention_mask"].shape == (2, 6)


@pytest.mark.parametrize(
    "adapted", [Adapted("PREFIX_TUNING", 2), Adapted("CARTRIDGE", 2), Adapted("LORA", 2, prompt=False)]
)
def test_rows_are_an_error_where_the_adapter_adds_none(adapted: nn.Module) -> None:
    with pytest.raises(DimensionError, match=r"2 positions more.* [A-Z_]+ adapter 'default' adds 0"):
        transform(ExtendPromptMask(), features_of(RIGHT), {"token_embeddings": embed(RIGHT_ROWS)}, adapted)


def test_any_number_of_rows_is_right_where_none_is_expected_in_particular() -> None:
    output = transform(hook_with(expected=None), features_of(RIGHT), {"token_embeddings": embed(RIGHT_ROWS)})
    assert output["attention_mask"].shape == (2, 6)


def test_a_batch_encoding_is_taken_and_stays_as_it_was() -> None:
    transformers = pytest.importorskip("transformers")
    given = transformers.BatchEncoding(features_of(RIGHT))
    output = transform(hook_with(), given, {"token_embeddings": embed(RIGHT_ROWS)})
    assert output["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    assert sorted(given) == ["attention_mask", "input_ids"]
    assert given["attention_mask"].tolist() == RIGHT


@pytest.mark.parametrize(("policy", "front"), [("auto", [1, 1]), ("ignore", [0, 0]), ("strip", [])])
def test_features_without_a_mask_get_one_that_counts_every_token(policy: str, front: list[int]) -> None:
    given = features_of(RIGHT)
    del given["attention_mask"]
    output = transform(hook_with(policy), given, {"token_embeddings": embed(RIGHT_ROWS)})
    assert output["attention_mask"].dtype is torch.int64
    assert output["attention_mask"].tolist() == [[*front, 1, 1, 1, 1]] * 2


def test_features_of_embeddings_instead_of_ids_are_measured_by_them() -> None:
    given = {"inputs_embeds": torch.zeros(2, 4, 2)}
    output = transform(hook_with(), given, {"token_embeddings": embed(RIGHT_ROWS)})
    assert output["attention_mask"].tolist() == [[1] * 6] * 2


def test_features_without_a_mask_and_without_virtual_rows_get_none() -> None:
    output = transform(hook_with(), {"input_ids": torch.zeros(2, 6)}, {"token_embeddings": embed(RIGHT_ROWS)})
    assert "attention_mask" not in output


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ({"pixel_values": torch.zeros(2, 3, 4, 4)}, {"token_embeddings": embed(RIGHT_ROWS)}),
        (features_of(RIGHT), {"scores": torch.zeros(2)}),
        (features_of(RIGHT), {"token_embeddings": torch.zeros(2, 6)}),
        (features_of(RIGHT), {"token_embeddings": torch.zeros(1, 2, 6, 3)}),
    ],
    ids=["an image", "scores", "2-d", "4-d"],
)
def test_what_is_not_one_row_per_token_is_left_alone(given: dict[str, Any], output: dict[str, Any]) -> None:
    call = Call(nn.Identity(), "0", (given,), {})
    hook = hook_with()
    hook.before(call)
    assert hook.after(call, output) is None


@pytest.mark.parametrize("hook", [ExtendPromptMask, PreparePooling])
def test_an_unknown_policy_is_refused_with_those_there_are(hook: Any, golden: Golden) -> None:
    with pytest.raises(ValueError, match="is not a policy") as caught:
        hook("mean")
    golden("refusals", caught.value)
    assert_says(caught.value, "virtual_tokens='mean' | 'auto', 'pool', 'ignore', 'strip'")


def test_the_hooks_are_written_with_their_policy_and_travel() -> None:
    for hook in (ExtendPromptMask("strip"), PreparePooling("pool")):
        for twin in (copy.deepcopy(hook), pickle.loads(pickle.dumps(hook))):
            assert repr(twin) == repr(hook)
            assert vars(twin) == vars(hook)
    assert repr(ExtendPromptMask()) == "ExtendPromptMask(virtual_tokens='auto')"
    assert repr(PreparePooling("pool")) == "PreparePooling(virtual_tokens='pool', missing=0)"


# -- PreparePooling ----------------------------------------------------------------------------------------------------


class Pooling(nn.Module):
    """A stand-in for Pooling: writes its result into the dict that it gets, and keeps what it was given to count."""

    def __init__(self, mode: Any = "mean", include_prompt: bool = True) -> None:
        super().__init__()
        self.pooling_mode, self.include_prompt = mode, include_prompt

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        self.got = dict(features)
        features["sentence_embedding"] = torch.zeros(features["token_embeddings"].size(0), 2)
        return features


class OldPooling(nn.Module):
    """A stand-in for Pooling before 5.4: a flag for each mode."""

    forward = Pooling.forward

    def __init__(self, **flags: bool) -> None:
        super().__init__()
        self.include_prompt = True
        for flag, value in flags.items():
            setattr(self, flag, value)


def pool(pooling: Any, features: Any, policy: Any = "auto") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what Pooling was given, and what came out of it, with the hook on it."""
    with HookRegistry(pooling).attached(PreparePooling(policy), to=""):
        output = pooling(features)
    return pooling.got, output


def extended(mask: list[list[int]], rows: list[list[int]], policy: str = "auto", **more: Any) -> dict[str, Any]:
    """The features that ``ExtendPromptMask`` hands on, with the mask written out here."""
    front = [0, 0] if policy == "ignore" else [1, 1]
    given = features_of(mask, token_embeddings=embed(rows), **more)
    given["attention_mask"] = torch.tensor([front + row for row in mask])
    return given


@pytest.mark.parametrize(("policy", "expected"), [("auto", [11, 21]), ("pool", [71, 71]), ("ignore", [11, 21])])
def test_cls_reads_the_texts_own_first_token_but_under_pool_position_0(policy: str, expected: Any) -> None:
    got, _ = pool(Pooling("cls"), extended(RIGHT, RIGHT_ROWS, policy), policy)
    assert numbers(got["cls_token_embeddings"]) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_a_text_without_virtual_rows_is_pooled_as_it_is(policy: str) -> None:
    """Its first token is in position 0, where Pooling looks for it."""
    given = features_of(RIGHT, token_embeddings=embed([row[2:] for row in RIGHT_ROWS]))
    got, _ = pool(Pooling("cls"), given, policy)
    assert "cls_token_embeddings" not in got
    given["prompt_length"] = 1
    got, _ = pool(Pooling("cls", include_prompt=False), given, policy)
    assert numbers(got["cls_token_embeddings"]) == [12, 22]


def test_a_cls_embedding_that_the_transformer_gives_stays_unless_there_are_virtual_tokens() -> None:
    own = embed([[5, 6]])[0]
    got, output = pool(
        Pooling("cls"), features_of(RIGHT, token_embeddings=embed([[1, 2, 3, 4]] * 2), cls_token_embeddings=own)
    )
    assert got["cls_token_embeddings"] is own
    assert output["cls_token_embeddings"] is own
    got, output = pool(Pooling("cls"), extended(RIGHT, RIGHT_ROWS, cls_token_embeddings=own))
    assert numbers(got["cls_token_embeddings"]) == [11, 21]
    assert output["cls_token_embeddings"] is own


@pytest.mark.parametrize(
    "length", [1, torch.tensor([1]), torch.tensor([1, 1])], ids=["int", "tensor[1]", "tensor[batch]"]
)
def test_a_prompt_is_left_out_at_its_real_place(length: Any) -> None:
    """The prompt is the first token of each text: 11 and 21."""
    got, output = pool(
        Pooling(("cls", "mean"), include_prompt=False), extended(RIGHT, RIGHT_ROWS, prompt_length=length)
    )
    counted = [
        sorted(number for number, kept in zip(row, kept_row, strict=True) if kept)
        for row, kept_row in zip(numbers(got["token_embeddings"]), got["attention_mask"].tolist(), strict=True)
    ]
    assert counted == [[12, 13, 71, 72], [22, 71, 72]]
    assert numbers(got["cls_token_embeddings"]) == [12, 22]
    assert "prompt_length" not in got
    assert output["prompt_length"] is length


def test_a_prompt_is_left_to_pooling_under_ignore_in_a_layout_where_all_releases_agree() -> None:
    got, _ = pool(
        Pooling(("cls", "mean"), include_prompt=False), extended(RIGHT, RIGHT_ROWS, "ignore", prompt_length=1), "ignore"
    )
    assert got["prompt_length"] == 1
    first, second = numbers(got["token_embeddings"])
    assert (first[:3], second[:2]) == ([11, 12, 13], [21, 22])
    assert got["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert numbers(got["cls_token_embeddings"]) == [12, 22]


def test_a_prompt_is_left_out_from_position_0_under_pool() -> None:
    got, _ = pool(Pooling("mean", include_prompt=False), extended(RIGHT, RIGHT_ROWS, prompt_length=1), "pool")
    assert got["prompt_length"] == 1
    assert [row[0] for row in numbers(got["token_embeddings"])] == [71, 71]
    assert got["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]


def test_a_prompt_that_counts_is_not_touched() -> None:
    got, output = pool(Pooling("mean", include_prompt=True), extended(RIGHT, RIGHT_ROWS, prompt_length=1))
    assert got["prompt_length"] == output["prompt_length"] == 1
    assert got["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("pooling", [Pooling("weightedmean"), OldPooling(pooling_mode_weightedmean_tokens=True)])
def test_weighted_means_count_from_the_first_row_that_counts(pooling: Any) -> None:
    got, _ = pool(pooling, extended(RIGHT, RIGHT_ROWS))
    assert numbers(got["token_embeddings"]) == RIGHT_ROWS
    got, _ = pool(pooling, extended(RIGHT, RIGHT_ROWS, "ignore"), "ignore")
    assert numbers(got["token_embeddings"]) == [row[2:] + row[:2] for row in RIGHT_ROWS]
    assert got["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("pooling", [OldPooling(pooling_mode_cls_token=True), Pooling(["cls", "mean"])])
def test_the_modes_are_found_however_the_release_keeps_them(pooling: Any) -> None:
    assert numbers(pool(pooling, extended(RIGHT, RIGHT_ROWS))[0]["cls_token_embeddings"]) == [11, 21]


@pytest.mark.parametrize("mode", ["mean", "max", "lasttoken", "mean_sqrt_len_tokens"])
def test_other_modes_get_the_features_as_they_are(mode: str) -> None:
    given = extended(RIGHT, RIGHT_ROWS)
    got, _ = pool(Pooling(mode), given)
    assert all(got[key] is given[key] for key in given)
    assert "cls_token_embeddings" not in got


def test_under_auto_what_comes_out_has_one_row_per_token_of_the_text() -> None:
    layers = (embed(RIGHT_ROWS), embed(RIGHT_ROWS))
    _, output = pool(Pooling("mean"), extended(RIGHT, RIGHT_ROWS, all_layer_embeddings=layers))
    assert numbers(output["token_embeddings"]) == [[11, 12, 13, 91], [21, 22, 92, 93]]
    assert output["attention_mask"].tolist() == RIGHT
    assert [numbers(layer) for layer in output["all_layer_embeddings"]] == [[[11, 12, 13, 91], [21, 22, 92, 93]]] * 2
    assert output["sentence_embedding"].shape == (2, 2)


@pytest.mark.parametrize("mode", ["mean", "cls", "weightedmean"])
@pytest.mark.parametrize("policy", ["pool", "ignore"])
def test_under_pool_and_ignore_what_comes_out_is_what_went_in(mode: str, policy: str) -> None:
    given = extended(RIGHT, RIGHT_ROWS, policy)
    _, output = pool(Pooling(mode), given, policy)
    assert all(output[key] is given[key] for key in given)
    assert sorted(set(output) - set(given)) == ["sentence_embedding"]


@pytest.mark.parametrize("mode", ["mean", "cls", "weightedmean"])
def test_the_callers_features_stay_and_a_second_pass_through_pooling_gives_the_same(mode: str) -> None:
    given = extended(RIGHT, RIGHT_ROWS, all_layer_embeddings=(embed(RIGHT_ROWS),), prompt_length=1)
    before = dict(given)
    pooling = Pooling(mode, include_prompt=False)
    first = pool(pooling, given)
    assert list(given) == list(before)
    assert all(given[key] is before[key] for key in before)
    second = pool(pooling, given)
    for one, other in zip(first, second, strict=True):
        assert sorted(one) == sorted(other)
        assert numbers(one["token_embeddings"]) == numbers(other["token_embeddings"])
        assert one["attention_mask"].tolist() == other["attention_mask"].tolist()


def test_a_batch_encoding_goes_through_pooling() -> None:
    transformers = pytest.importorskip("transformers")
    got, output = pool(Pooling("cls"), transformers.BatchEncoding(extended(RIGHT, RIGHT_ROWS)))
    assert numbers(got["cls_token_embeddings"]) == [11, 21]
    assert numbers(output["token_embeddings"]) == [[11, 12, 13, 91], [21, 22, 92, 93]]


@pytest.mark.parametrize(
    "broken",
    [
        {"attention_mask": None},
        {"input_ids": None},
        {"attention_mask": torch.tensor(RIGHT)},
        {"token_embeddings": torch.zeros(2, 6)},
    ],
    ids=["no mask", "no ids", "mask too short", "2-d"],
)
def test_features_that_cannot_be_prepared_are_handed_on_as_they_are(broken: dict[str, Any]) -> None:
    given = {key: value for key, value in {**extended(RIGHT, RIGHT_ROWS), **broken}.items() if value is not None}
    got, output = pool(Pooling("cls"), given)
    assert got.keys() | {"sentence_embedding"} == given.keys()
    assert output is given


@pytest.mark.parametrize("mode", ["mean", "cls", "weightedmean"])
def test_pooling_is_prepared_without_reading_a_value(mode: str) -> None:
    given = {key: value.to("meta") for key, value in extended(RIGHT, RIGHT_ROWS).items()}
    given["prompt_length"] = torch.tensor([1], device="meta")
    got, output = pool(Pooling(mode, include_prompt=False), given)
    assert got["token_embeddings"].shape == (2, 6, 2)
    assert output["token_embeddings"].shape == (2, 4, 2)


# -- the property: a text is pooled the same alone and in any batch ---------------------------------------------------


def plain_pooling(mode: str, rows: list[int], kept: list[bool]) -> float:
    """Pool one row in plain Python, positions counted from the row's start, as releases before 6.2 do."""
    counted = [(position + 1, number) for position, number in enumerate(rows) if kept[position]]
    if mode == "max":
        return float(max(number for _, number in counted))
    if mode == "lasttoken":
        return float(counted[-1][1])
    if mode == "cls":
        return float(counted[0][1])
    weights = [weight if mode == "weightedmean" else 1 for weight, _ in counted]
    return sum(weight * number for weight, (_, number) in zip(weights, counted, strict=True)) / sum(weights)


def by_hand(mode: str, policy: str, virtual: list[int], text: list[int], prompt: int) -> float:
    """What the text alone, unpadded, must give under a policy."""
    if policy in ("ignore", "strip"):
        virtual = []
    rows = virtual + text
    if policy == "pool":  # the first `prompt` positions, whatever they are; cls reads position 0
        kept = [position >= prompt for position in range(len(rows))]
        if mode == "cls" and virtual:
            return float(rows[0])
    else:
        kept = [not len(virtual) <= position < len(virtual) + prompt for position in range(len(rows))]
        if mode == "cls":
            return float(text[prompt])
    return plain_pooling(mode, rows, kept)


class Embeds(nn.Module):
    """A stand-in for a Transformer: each token's number as its row, behind those of virtual tokens."""

    def __init__(self, virtual: list[int]) -> None:
        super().__init__()
        self.virtual = virtual

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        rows = [self.virtual + row for row in features["input_ids"].tolist()]
        return {**features, "token_embeddings": embed(rows)}


texts = st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=5), min_size=1, max_size=3)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    mode=st.sampled_from(["mean", "weightedmean", "cls", "lasttoken", "max"]),
    policy=st.sampled_from(POLICIES),
    virtual=st.lists(st.integers(60, 99), max_size=3),
    texts=texts,
    prompt=st.sampled_from([None, 1, 2]),
    layout=st.randoms(use_true_random=False),
)
def test_a_text_is_pooled_the_same_alone_and_with_padding_on_either_side(
    mode: str, policy: Any, virtual: list[int], texts: list[list[int]], prompt: int | None, layout: Any
) -> None:
    """Through the three hooks of a pipeline: each text lies anywhere in its row, with padding before and behind it."""
    length = max(map(len, texts)) + 1
    mask, ids = [], []
    for text in texts:
        before = layout.randint(0, length - len(text))
        behind = length - len(text) - before
        ids.append([-1000] * before + text + [-1000] * behind)
        mask.append([0] * before + [1] * len(text) + [0] * behind)
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    given |= {} if prompt is None else {"prompt_length": prompt}
    pooling = Pooling(mode, include_prompt=False)
    model = nn.Sequential(Embeds(virtual), pooling)
    registry = HookRegistry(model)
    registry.attach(PutPaddingLast(), to="0", order=-1)
    registry.attach(hook_with(policy, expected=len(virtual)), to="0")
    registry.attach(PreparePooling(policy), to="1")
    model(given)
    got = pooling.got
    for index, text in enumerate(texts):
        row = numbers(got["token_embeddings"])[index]
        kept = [bool(one) for one in got["attention_mask"][index].tolist()]
        left_out = got.get("prompt_length", 0)
        if mode == "cls" and "cls_token_embeddings" in got:
            found = float(numbers(got["cls_token_embeddings"])[index])
        else:
            found = plain_pooling(mode, row, [one and place >= left_out for place, one in enumerate(kept)])
        assert found == pytest.approx(by_hand(mode, policy, virtual, text, prompt or 0))
