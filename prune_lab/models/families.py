"""Where each model family keeps its blocks and weights. A new family is one row of ``FAMILIES``."""

from dataclasses import dataclass, replace
from posixpath import commonpath
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from prune_lab.errors import BadInput
from prune_lab.models.block import Block
from prune_lab.models.experts import Moe, read_moe
from prune_lab.models.registered import PREFIX
from prune_lab.models.rotations import ROTATIONS
from prune_lab.models.view import Attention, FreeKeys, Layout, Mlp, PrunableLinear

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """The paths of one family: ``blocks`` from the model, the rest from a block."""

    blocks: str
    attention: tuple[str, ...]  # the projections that read the block's input: three, or one fused
    attention_out: str
    up: str
    down: str
    gate: str | None = None
    activation: str = "hidden_act"  # the key of the configuration that names it
    width: str = "intermediate_size"  # the key of the configuration that says how many neurons a block has
    depth: str = "num_hidden_layers"  # likewise, how many blocks there are
    tuple_out: bool = False
    layout: Layout = "separate"  # of a fused projection: see Attention
    counters: tuple[str, ...] = ()  # attributes of the attention module that count heads
    bos: Literal["text", "window"] = "text"  # where the token that begins a text is needed: see prune_lab.data.bos
    head_dim: str | None = None  # the key of the configuration that sets it apart from the number of heads
    attention_bias: str | None = None  # the key that gives all projections of the attention a bias, where one does
    mlp_bias: str | None = None  # likewise, of the feed-forward network
    experts: str | None = None  # of blocks with experts in the place of that network: the module that holds them
    router: str | None = None  # and the one that gives each token some of them
    joint_norm: bool = False  # queries and keys of all heads are normalised together, so that no head can go
    free_keys: FreeKeys | None = None  # what of queries and keys can go: see Attention
    norms: tuple[str, str] | None = None  # what the two halves of a block read; None: their outputs are normalised, too
    final_norm: str = ""  # from the model, what the head reads
    positions: str | None = None  # from the model, the embedding of learned positions
    head: tuple[
        str, ...
    ] = ()  # of an encoder, from the model: what makes classes of its hidden states, in training too
    other_heads: tuple[str, ...] = ()  # and what checkpoints have for other tasks in its place
    positions_after_padding: bool = False  # the first position has the number after that of the padding token

    @property
    def encoder(self) -> bool:
        """Whether it reads texts both ways, to classify them; all others predict the next token."""
        return bool(self.head)

    @property
    def auto_class(self) -> str:
        """The class of transformers that opens its models."""
        return "AutoModelForSequenceClassification" if self.encoder else "AutoModelForCausalLM"

    @property
    def attention_module(self) -> str:
        """The path of what holds all projections of the attention."""
        parents = (path.rpartition(".")[0].replace(".", "/") for path in (*self.attention, self.attention_out))
        return commonpath(parents).replace("/", ".")

    @property
    def shared_inputs(self) -> tuple[tuple[str, ...], ...]:
        """The paths of all weights in the order of a forward pass, those together that read the same tensor."""
        feed_forward = (self.gate, self.up) if self.gate else (self.up,)
        return (*self.of_attention, feed_forward, (self.down,))

    @property
    def of_attention(self) -> tuple[tuple[str, ...], ...]:
        """The paths of those of the attention, likewise."""
        return (self.attention, (self.attention_out,))


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LLAMA = Family(
    "model.layers",
    _QKV,
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "mlp.gate_proj",
    free_keys="pairs",
    head_dim="head_dim",
    norms=("input_layernorm", "post_attention_layernorm"),
    final_norm="model.norm",
)
_ATTENTION_BIAS = replace(_LLAMA, attention_bias="attention_bias")
_BERT = Family(
    "bert.encoder.layer",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    free_keys="rows",
    positions="bert.embeddings.position_embeddings",
    head=("classifier", "bert.pooler"),
    other_heads=("cls",),
)
_ROBERTA = replace(
    _BERT,
    blocks="roberta.encoder.layer",
    positions="roberta.embeddings.position_embeddings",
    head=("classifier",),
    other_heads=("lm_head", "roberta.pooler"),
    positions_after_padding=True,
)
_EXPERTS = replace(_ATTENTION_BIAS, free_keys=None, experts="mlp.experts", router="mlp.gate")

FAMILIES: dict[str, Family] = {  # by the model_type of the configuration
    "llama": replace(_ATTENTION_BIAS, mlp_bias="mlp_bias"),
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_ATTENTION_BIAS, free_keys=None),
    "mixtral": replace(_EXPERTS, attention_bias=None, free_keys="pairs"),
    "qwen3_moe": _EXPERTS,
    "olmoe": replace(_EXPERTS, head_dim=None, joint_norm=True),
    "gemma3_text": replace(_ATTENTION_BIAS, free_keys=None, activation="hidden_activation", bos="window", norms=None),
    "opt": Family(
        "model.decoder.layers",
        _QKV,
        "self_attn.out_proj",
        "fc1",
        "fc2",
        free_keys="rows",
        activation="activation_function",
        width="ffn_dim",
        counters=("num_heads",),
        norms=("self_attn_layer_norm", "final_layer_norm"),
        final_norm="model.decoder.final_layer_norm",
        positions="model.decoder.embed_positions",
    ),
    "gpt2": Family(
        "transformer.h",
        ("attn.c_attn",),
        "attn.c_proj",
        "mlp.c_fc",
        "mlp.c_proj",
        activation="activation_function",
        width="n_inner",
        depth="n_layer",
        layout="parts",
        counters=("num_heads", "split_size"),
        norms=("ln_1", "ln_2"),
        final_norm="transformer.ln_f",
        positions="transformer.wpe",
    ),
    "gpt_neo": Family(
        "transformer.h",
        ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        "attn.attention.out_proj",
        "mlp.c_fc",
        "mlp.c_proj",
        activation="activation_function",
        depth="num_layers",
        free_keys="rows",
        tuple_out=True,
        counters=("num_heads",),
        norms=("ln_1", "ln_2"),
        final_norm="transformer.ln_f",
        positions="transformer.wpe",
    ),
    "gpt_neox": Family(
        "gpt_neox.layers",
        ("attention.query_key_value",),
        "attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        layout="heads",
        norms=("input_layernorm", "post_attention_layernorm"),
        final_norm="gpt_neox.final_layer_norm",
    ),
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def family_of(model_type: str) -> Family:
    """The row of a ``model_type``, which a model has, too, whose blocks differ in width.

    Raises:
        BadInput: there is none.
    """
    if (family := model_type.removeprefix(PREFIX)) in FAMILIES:
        return FAMILIES[family]
    raise BadInput(
        f"the model's family is {model_type!r}, which prune_lab does not know; it knows "
        f"{', '.join(sorted(FAMILIES))}. A family is one row of FAMILIES in prune_lab/models/families.py."
    )


def why_blocks_stay(config: "PretrainedConfig") -> str | None:
    """Says why a block of a model cannot be left out or become an identity, as a predicate; ``None`` if it can."""
    if family_of(config.model_type).encoder:
        return "normalises the residual stream in every block, also in an empty one"
    if getattr(config, "do_layer_norm_before", True) is False:
        return "normalises the residual stream in every block (do_layer_norm_before=false), also in an empty one"
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return "divides attention scores by the number of the block (scale_attn_by_inverse_layer_idx=true)"
    if getattr(config, ROTATIONS, None):
        return "rotates the residual stream before some blocks (rotations_before)"
    return None


def read_blocks(hf: "PreTrainedModel") -> list[Block]:
    """Reads the blocks and linear layers of a model.

    Raises:
        BadInput: the family is unknown, or a block holds a weight that no linear layer covers.
    """
    family = family_of(hf.config.model_type)
    modules = cast(nn.ModuleList, hf.get_submodule(family.blocks))  # declared as any module
    return [
        _read_block(index, f"{family.blocks}.{index}", module, family, hf.config)
        for index, module in enumerate(modules)
    ]


def _read_block(index: int, name: str, module: nn.Module, family: Family, config: "PretrainedConfig") -> Block:
    from transformers.pytorch_utils import Conv1D

    moe = _read_experts(name, module, family, config)
    groups = family.of_attention if moe else family.shared_inputs
    paths = [path for shared_inputs in groups for path in shared_inputs]
    covered = {f"{family.router}.weight", f"{family.experts}.gate_up_proj", f"{family.experts}.down_proj"}
    covered.add("rotation.weight")  # of the residual stream, no weight of the block's own
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    uncovered = [
        path
        for path, parameter in module.named_parameters()
        if parameter.ndim >= 2 and path not in covered and path.removesuffix(".weight") not in set(paths) & set(layers)
    ]
    missing = [path for path in paths if path not in layers]
    if uncovered or missing:
        problem = (
            f"does not cover {', '.join(uncovered)}" if uncovered else f"expects {', '.join(missing)}, which it lacks"
        )
        raise BadInput(f"{name}: the family table {problem}. Pruning would silently skip weights, so it stops here.")
    linears = {path: PrunableLinear(f"{name}.{path}", layers[path]) for path in paths}
    shared_inputs = tuple(tuple(linears[path] for path in together) for together in groups)
    attention = _read_attention(module, linears, family, config)
    if moe:
        return Block(index, name, module, (*shared_inputs, *moe.shared_inputs), moe, attention, family.tuple_out)
    gate, activation = linears[family.gate] if family.gate else None, str(getattr(config, family.activation))
    mlp = Mlp(linears[family.up], linears[family.down], gate, activation)
    return Block(index, name, module, shared_inputs, mlp, attention, family.tuple_out)


def _read_experts(name: str, module: nn.Module, family: Family, config: "PretrainedConfig") -> Moe | None:
    """Reads the experts of a block; ``None`` where the family or the block has none: some have one network instead."""
    if family.experts is None or family.router is None or family.experts not in dict(module.named_modules()):
        return None
    parent = family.experts.rpartition(".")[0]
    router, experts = (path.removeprefix(f"{parent}.") for path in (family.router, family.experts))
    return read_moe(f"{name}.{parent}", module.get_submodule(parent), router, experts, config)


def _read_attention(
    block: nn.Module, linears: dict[str, PrunableLinear], family: Family, config: "PretrainedConfig"
) -> Attention:
    head_dim = getattr(config, family.head_dim, None) if family.head_dim else None
    return Attention(
        block.get_submodule(family.attention_module),
        tuple(linears[path] for path in family.attention),
        linears[family.attention_out],
        int(head_dim or config.hidden_size // config.num_attention_heads),
        family.layout,
        family.counters,
        family.joint_norm,
        family.free_keys,
    )
