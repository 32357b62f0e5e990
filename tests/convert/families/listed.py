"""Names and shapes of tensors in public files."""

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, *shape: int, bias: bool = True) -> Shapes:
    """A weight, and a bias as long as its first dim."""
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def linears(names: str, *shape: int, bias: bool = True) -> Shapes:
    """Several of one shape; `names` has words between braces: `self.{query key}`."""
    before, _, rest = names.partition("{")
    middle, _, after = rest.partition("}")
    return {k: v for word in middle.split() for k, v in linear(f"{before}{word}{after}", *shape, bias=bias).items()}


def stack(name: str, depth: int, layer: Shapes) -> Shapes:
    """Layers 0, 1, ... under a name."""
    return {f"{name}.{n}.{part}": shape for n in range(depth) for part, shape in layer.items()}


def bert_layer(norm: tuple[str, str] = ("weight", "bias"), width: int = 768, parts: tuple[str, ...] = ("attention",)) -> Shapes:
    """A layer of BERT's, with one attention or more; what its norms call their two tensors."""

    def normed(name: str) -> Shapes:
        return {f"{name}.LayerNorm.{each}": (width,) for each in norm}

    attention: Shapes = {}
    for part in parts:
        attention |= linears(f"{part}.self.{{query key value}}", width, width)
        attention |= linear(f"{part}.output.dense", width, width) | normed(f"{part}.output")
    feed_forward = linear("intermediate.dense", 4 * width, width) | linear("output.dense", width, 4 * width)
    return attention | feed_forward | normed("output")


def vit_layer(width: int = 768) -> Shapes:
    """A layer of ViT's."""
    return {
        **linears("layernorm_{before after}", width),
        **linears("attention.attention.{query key value}", width, width),
        **linear("attention.output.dense", width, width),
        **linear("intermediate.dense", 4 * width, width),
        **linear("output.dense", width, 4 * width),
    }


def clip_layer(width: int) -> Shapes:
    """A layer of CLIP's."""
    return {
        **linears("self_attn.{q_proj k_proj v_proj out_proj}", width, width),
        **linears("layer_norm{1 2}", width),
        **linear("mlp.fc1", 4 * width, width),
        **linear("mlp.fc2", width, 4 * width),
    }


def llama_layer(width: int, middle: int, few: int) -> Shapes:
    """A layer of Llama's; `few` is the width of the keys and values."""
    return {
        **linears("{input_layernorm post_attention_layernorm}", width, bias=False),
        **linears("self_attn.{q_proj o_proj}", width, width, bias=False),
        **linears("self_attn.{k_proj v_proj}", few, width, bias=False),
        **linears("mlp.{gate_proj up_proj}", middle, width, bias=False),
        **linear("mlp.down_proj", width, middle, bias=False),
    }
