"""What PyTorch's layers, losses and functions take: a table, which ``patterns.py`` reads.

A pattern has a word for each dimension of an argument; alternatives of other rank stand behind ``|``:

- ``in_features``: the layer's attribute, or a number among the arguments; ``self_attn.embed_dim`` is one further in;
- ``N``: any size, but the same wherever the letter stands in one call; what the letters mean is in ``MEANINGS``;
- ``N*num_heads``: a product; ``~N``: that or 1, which is expanded;
- ``(L N)``: the other way round if the layer has ``batch_first``;
- ``...``: any dimensions; ``*normalized_shape``: as many as the attribute has.

Arguments are compared in the order in which they stand: what comes first is taken to be right.
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
        batch_first: Where the layer keeps whether ``(L N)`` is the other way round.
        integers: Parameters that must be integers.
        indices: Parameters whose values are indices, with what they count, in the words of patterns.
        alike: Parameters that must be of one dtype, with the layer's own ``weight``.
    """

    patterns: dict[str, str] = field(default_factory=dict)
    batch_first: str = ""
    integers: tuple[str, ...] = ()
    indices: dict[str, str] = field(default_factory=dict)
    alike: tuple[str, ...] = ()


def _conv(dimensions: str) -> Takes:
    return Takes({"input": f"N in_channels {dimensions} | in_channels {dimensions}"}, alike=("input",))


def _conv_function(dimensions: str) -> Takes:
    pattern = f"N I*groups {dimensions} | I*groups {dimensions}"
    return Takes({"weight": f"O I {dimensions.lower()}_", "input": pattern}, alike=("weight", "input"))


def _recurrent(state: dict[str, str]) -> Takes:
    return Takes({"input": "(L N) input_size | L input_size", **state}, "batch_first", alike=("input",))


def _encoder(mask: str, layer: str = "") -> Takes:
    return Takes(
        {
            "src": f"(L N) {layer}self_attn.embed_dim | L {layer}self_attn.embed_dim",
            mask: f"L L | N*{layer}self_attn.num_heads L L",
            "src_key_padding_mask": "N L | L",
        },
        f"{layer}self_attn.batch_first",
    )


def _decoder(layer: str = "") -> Takes:
    width = f"{layer}self_attn.embed_dim"
    return Takes(
        {
            "memory": f"(S N) {layer}multihead_attn.kdim | S {layer}multihead_attn.kdim",
            "tgt": f"(T N) {width} | T {width}",
            "tgt_mask": f"T T | N*{layer}self_attn.num_heads T T",
            "memory_mask": f"T S | N*{layer}self_attn.num_heads T S",
            "tgt_key_padding_mask": "N T | T",
            "memory_key_padding_mask": "N S | S",
        },
        f"{layer}self_attn.batch_first",
    )


_STATE = "layers N hidden_size | layers hidden_size"
_LINEAR = Takes({"input": "... in_features"}, alike=("input",))
_NORM = Takes({"input": "... *normalized_shape"})
_GATES = Takes({"input": "N input_size | input_size", "hx": "N hidden_size | hidden_size"}, alike=("input",))

ANY_TENSOR = Takes({"input": "..."})
"""What a layer of PyTorch takes that is not among ``LAYERS``."""

LAYERS: dict[str, Takes] = {
    "Linear": _LINEAR,
    "Bilinear": Takes({"input1": "... in1_features", "input2": "... in2_features"}, alike=("input1", "input2")),
    "LayerNorm": _NORM,
    "RMSNorm": _NORM,
    "Conv1d": _conv("L"),
    "Conv2d": _conv("H W"),
    "Conv3d": _conv("D H W"),
    "ConvTranspose1d": _conv("L"),
    "ConvTranspose2d": _conv("H W"),
    "ConvTranspose3d": _conv("D H W"),
    "BatchNorm1d": Takes({"input": "N num_features L | N num_features"}),
    "BatchNorm2d": Takes({"input": "N num_features H W"}),
    "BatchNorm3d": Takes({"input": "N num_features D H W"}),
    "InstanceNorm1d": Takes({"input": "N num_features L | num_features L"}),
    "InstanceNorm2d": Takes({"input": "N num_features H W | num_features H W"}),
    "InstanceNorm3d": Takes({"input": "N num_features D H W | num_features D H W"}),
    "GroupNorm": Takes({"input": "N num_channels ..."}),
    "MaxPool1d": Takes({"input": "N C_ L | C_ L"}),
    "MaxPool2d": Takes({"input": "N C_ H W | C_ H W"}),
    "AvgPool2d": Takes({"input": "N C_ H W | C_ H W"}),
    "AdaptiveAvgPool2d": Takes({"input": "N C_ H W | C_ H W"}),
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
            "src_mask": "S S | N*nhead S S",
            "tgt_mask": "T T | N*nhead T T",
            "memory_mask": "T S | N*nhead T S",
            "src_key_padding_mask": "N S | S",
            "tgt_key_padding_mask": "N T | T",
            "memory_key_padding_mask": "N S | S",
        },
        "batch_first",
    ),
}
"""By the name of a class of ``torch.nn``; a subclass takes what its class takes."""

_SAME = Takes({"input": "A ...", "target": "A ..."})
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
    "cross_entropy": Takes(_INDEXED, integers=("target",), indices={"target": "C"}),
    "nll_loss": Takes(_INDEXED, integers=("target",), indices={"target": "C"}),
    "multi_margin_loss": Takes(_INDEXED, integers=("target",), indices={"target": "C"}),
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
    "one_hot": Takes({"tensor": "..."}, integers=("tensor",), indices={"tensor": "num_classes"}),
}
"""By name: functions of ``torch`` and ``torch.nn.functional``, and methods of tensors."""
