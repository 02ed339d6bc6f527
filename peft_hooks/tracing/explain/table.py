"""The table of what PyTorch's layers, losses and functions take; ``patterns.py`` reads it.

A pattern has one word per dimension of an argument; ``|`` separates alternatives of different rank:

- ``in_features``: an attribute of the layer, or a number among the arguments; a dotted name is of an inner layer;
- ``N``: any size, but the same wherever the letter occurs in one call; ``MEANINGS`` says what the letters mean;
- ``N*num_heads``: a product; ``~N``: that size, or 1, which is expanded;
- ``(L N)``: swapped if the layer has ``batch_first``;
- ``...``: any dimensions; ``*normalized_shape``: as many as the attribute has.

Arguments are compared in the order of the table: the first ones are taken to be right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MEANINGS = {
    "N": "batch",
    "L": "length",
    "S": "length of the source",
    "T": "length of the target",
    "C": "classes",
    "in_channels": "channels",
    "I": "width",
    "E": "width",
    "K": "width",
}


@dataclass(frozen=True)
class Takes:
    """What one layer or function takes.

    Attributes:
        patterns: The arguments' dimensions, by parameter.
        batch_first: The attribute of the layer that says whether ``(L N)`` is swapped.
        integers: Parameters that must be integers.
        indices: Parameters whose values are indices, with what they index, as a word of a pattern.
        alike: Parameters that must have the same dtype as each other and the layer's own ``weight``.
    """

    patterns: dict[str, str] = field(default_factory=dict)
    batch_first: str = ""
    integers: tuple[str, ...] = ()
    indices: dict[str, str] = field(default_factory=dict)
    alike: tuple[str, ...] = ()


def _of_images(number: int, dimensions: str) -> dict[str, Takes]:
    conv = Takes({"input": f"N in_channels {dimensions} | in_channels {dimensions}"}, alike=("input",))
    norm = Takes({"input": f"N num_features {dimensions} | num_features {dimensions}"})
    return {
        f"Conv{number}d": conv,
        f"ConvTranspose{number}d": conv,
        f"InstanceNorm{number}d": norm,
        f"BatchNorm{number}d": Takes({"input": f"N num_features {dimensions}"}),
    }


def _conv_function(dimensions: str) -> Takes:
    pattern = f"N I*groups {dimensions} | I*groups {dimensions}"
    return Takes({"weight": f"O I {dimensions.lower()}_", "input": pattern}, alike=("weight", "input"))


def _recurrent(state: dict[str, str]) -> Takes:
    return Takes({"input": "(L N) input_size | L input_size", **state}, "batch_first", alike=("input", *state))


def _attention(heads: str, **masks: str) -> dict[str, str]:
    """Return the patterns of masks, given two letters each; the second is the length of what is attended to."""
    own = {name: f"{' '.join(two)} | N*{heads} {' '.join(two)}" for name, two in masks.items()}
    padding = {f"{name.removesuffix('mask')}key_padding_mask": f"N {two[1]} | {two[1]}" for name, two in masks.items()}
    return {**own, **padding}


def _encoder(mask: str, layer: str = "") -> Takes:
    width, heads = f"{layer}self_attn.embed_dim", f"{layer}self_attn.num_heads"
    masks = {mask: f"L L | N*{heads} L L", "src_key_padding_mask": "N L | L"}
    return Takes({"src": f"(L N) {width} | L {width}", **masks}, f"{layer}self_attn.batch_first")


def _decoder(layer: str = "") -> Takes:
    width, source = f"{layer}self_attn.embed_dim", f"{layer}multihead_attn.kdim"
    masks = _attention(f"{layer}self_attn.num_heads", tgt_mask="TT", memory_mask="TS")
    inputs = {"memory": f"(S N) {source} | S {source}", "tgt": f"(T N) {width} | T {width}"}
    return Takes({**inputs, **masks}, f"{layer}self_attn.batch_first")


_STATE = "layers N hidden_size | layers hidden_size"
_LINEAR = Takes({"input": "... in_features"}, alike=("input",))
_NORM = Takes({"input": "... *normalized_shape"})
_GATES = Takes({"input": "N input_size | input_size", "hx": "N hidden_size | hidden_size"}, alike=("input",))

ANY_TENSOR = Takes({"input": "..."})
"""What a PyTorch layer takes that is not in ``LAYERS``."""

LAYERS: dict[str, Takes] = {
    "Linear": _LINEAR,
    "Bilinear": Takes({"input1": "... in1_features", "input2": "... in2_features"}, alike=("input1", "input2")),
    "LayerNorm": _NORM,
    "RMSNorm": _NORM,
    **_of_images(1, "L"),
    **_of_images(2, "H W"),
    **_of_images(3, "D H W"),
    **dict.fromkeys(("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"), Takes({"input": "N C_ H W | C_ H W"})),
    "BatchNorm1d": Takes({"input": "N num_features L | N num_features"}),
    "GroupNorm": Takes({"input": "N num_channels ..."}),
    "MaxPool1d": Takes({"input": "N C_ L | C_ L"}),
    "Embedding": Takes({"input": "..."}, integers=("input",), indices={"input": "num_embeddings"}),
    "EmbeddingBag": Takes(
        {"input": "N L | I", "offsets": "N", "per_sample_weights": "N L | I"},
        integers=("input",),
        indices={"input": "num_embeddings"},
    ),
    "RNN": _recurrent({"hx": _STATE}),
    "GRU": _recurrent({"hx": _STATE}),
    "LSTM": _recurrent({"hx.0": _STATE.replace("hidden_size", "state_size"), "hx.1": _STATE}),
    "RNNCell": _GATES,
    "GRUCell": _GATES,
    "LSTMCell": Takes({"input": "N input_size | input_size", "hx.0": "N hidden_size", "hx.1": "N hidden_size"}),
    "MultiheadAttention": Takes(
        {
            "query": "(L N) embed_dim | L embed_dim",
            "key": "(S N) kdim | S kdim",
            "value": "(S N) vdim | S vdim",
            "key_padding_mask": "N S | S",
            "attn_mask": "L S | N*num_heads L S",
        },
        "batch_first",
        alike=("query",),
    ),
    "TransformerEncoderLayer": _encoder("src_mask"),
    "TransformerEncoder": _encoder("mask", "layers.0."),
    "TransformerDecoderLayer": _decoder(),
    "TransformerDecoder": _decoder("layers.0."),
    "Transformer": Takes(
        {
            "src": "(S N) d_model | S d_model",
            "tgt": "(T N) d_model | T d_model",
            **_attention("nhead", src_mask="SS", tgt_mask="TT", memory_mask="TS"),
        },
        "batch_first",
    ),
}
"""By the name of a class in ``torch.nn``; a subclass takes what its base class takes."""

CLASSIFY = ("cross_entropy", "nll_loss", "multi_margin_loss")
_INDEXED = {"input": "N C ... | C", "target": "N ... | "}

FUNCTIONS: dict[str, Takes] = {
    "linear": Takes({"weight": "O I", "input": "... I", "bias": "~O"}, alike=("weight", "input", "bias")),
    "bilinear": Takes({"weight": "O I J", "input1": "... I", "input2": "... J"}, alike=("input1", "input2", "weight")),
    "embedding": Takes({"weight": "V E", "input": "..."}, integers=("input",), indices={"input": "V"}),
    "embedding_bag": Takes({"weight": "V E", "input": "N L | I"}, integers=("input",), indices={"input": "V"}),
    "layer_norm": Takes({"input": "... *normalized_shape", "weight": "*normalized_shape"}),
    "batch_norm": Takes({"running_mean": "F", "input": "N F ...", "weight": "F"}),
    "conv1d": _conv_function("L"),
    "conv2d": _conv_function("H W"),
    "conv3d": _conv_function("D H W"),
    **dict.fromkeys(CLASSIFY, Takes(_INDEXED, integers=("target",), indices={"target": "C"})),
    "cosine_embedding_loss": Takes({"input1": "N E | E", "input2": "N E | E", "target": "N | "}),
    "ctc_loss": Takes(
        {"log_probs": "T N C | T C", "targets": "N S | K", "input_lengths": "N", "target_lengths": "N"},
        integers=("targets",),
        indices={"targets": "C"},
    ),
    "scaled_dot_product_attention": Takes(
        {"query": "... L E", "key": "... S E", "value": "... S V", "attn_mask": "... ~L ~S"},
        alike=("query", "key", "value"),
    ),
    "bmm": Takes({"mat2": "B K J", "input": "B I K"}, alike=("input", "mat2")),
    "mm": Takes({"mat2": "K J", "input": "I K"}, alike=("input", "mat2")),
    "mv": Takes({"vec": "K", "input": "I K"}, alike=("input", "vec")),
    "dot": Takes({"input": "K", "tensor": "K"}, alike=("input", "tensor")),
    "addmm": Takes({"mat2": "K J", "mat1": "I K"}, alike=("mat1", "mat2")),
    "baddbmm": Takes({"batch2": "B K J", "batch1": "B I K"}, alike=("batch1", "batch2")),
    "cdist": Takes({"x1": "... K", "x2": "... K"}, alike=("x1", "x2")),
    "pack_padded_sequence": Takes({"input": "(T N) ...", "lengths": "N"}, "batch_first"),
    "matmul": Takes(alike=("input", "other")),
    "einsum": Takes(alike=("args.1", "args.2", "args.3")),
    "one_hot": Takes({"tensor": "..."}, integers=("tensor",), indices={"tensor": "num_classes"}),
}
"""By name: functions in ``torch`` and ``torch.nn.functional``, and methods of tensors."""


def _all(names: str, *parameters: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), parameters)


BROADCAST = {
    **_all("mse_loss l1_loss smooth_l1_loss huber_loss kl_div soft_margin_loss gaussian_nll_loss", "input", "target"),
    **_all("triplet_margin_loss", "anchor", "positive", "negative"),
    **_all("margin_ranking_loss", "input1", "input2", "target"),
    **_all("pairwise_distance cosine_similarity", "x1", "x2"),
    **_all("where", "condition", "input", "other"),
    **_all("lerp", "input", "end", "weight"),
    **_all("masked_fill masked_fill_", "input", "mask"),
    **_all("addcmul", "input", "tensor1", "tensor2"),
    **_all("add sub mul div pow maximum minimum eq ne lt le gt ge logical_and logical_or", "input", "other"),
    **_all("add_ sub_ mul_ div_", "input", "other"),
}
"""Functions whose arguments are broadcast together."""

EQUAL = _all("binary_cross_entropy binary_cross_entropy_with_logits poisson_nll_loss", "input", "target")
"""Losses whose ``input`` and ``target`` must have the same shape."""

BY_INDEX = {
    **_all("gather index_select", "input", "dim", "index"),
    **_all("take_along_dim", "input", "index", "dim"),
    **_all("scatter scatter_ scatter_add scatter_add_", "input", "dim", "index", "src"),
    **_all("index_add index_add_ index_copy index_copy_", "input", "dim", "index", "source"),
}
"""Functions that take an index along a dimension."""

PARAMETERS: dict[str, tuple[str, ...]] = {
    **_all("linear", "input", "weight", "bias"),
    **_all("bilinear", "input1", "input2", "weight", "bias"),
    **_all("embedding", "weight", "input"),
    **_all("layer_norm", "input", "normalized_shape", "weight", "bias"),
    **_all("conv1d conv2d conv3d", "input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    **_all("scaled_dot_product_attention", "query", "key", "value", "attn_mask"),
    **_all("bmm mm", "input", "mat2"),
    **_all("mv", "input", "vec"),
    **_all("dot", "input", "tensor"),
    **_all("addmm", "input", "mat1", "mat2"),
    **_all("baddbmm", "input", "batch1", "batch2"),
    **_all("cdist", "x1", "x2"),
    **_all("one_hot", "tensor", "num_classes"),
    **_all("cat concat stack", "tensors", "dim"),
    **_all("matmul", "input", "other"),
    **_all("masked_scatter masked_scatter_", "input", "mask", "source"),
    **_all("masked_select", "input", "mask"),
    **_all("pad_sequence", "sequences", "batch_first"),
    **_all("split", "tensor", "split_size_or_sections", "dim"),
    **BROADCAST,
    **BY_INDEX,
}
"""The parameters, in order, of functions written in C++; a method's own tensor comes first."""
