"""DeiT: all but the tokens is ViT's, and so are its tests of each field."""

from cases import Case, Layers, Made, Published

from families.listed import linears, vit_layer
from families.vit import CONFIG, LABELS, RATES, SIZES, base, batch, in_memory

BASE = Made("DeiTModel", {"pooler": "pooler_output"})
TEACHER = Made("DeiTForImageClassificationWithTeacher", {"classes": "logits"})

DEIT = Case(
    "deit",
    SIZES,
    batch,
    models=(
        BASE.of({"qkv_bias": False}),
        Made("DeiTForImageClassification", {"classes": "logits"}, {"num_labels": 5}),
        TEACHER.of({"num_labels": 5}),
        TEACHER.of({"num_labels": 0, "image_size": [12, 20]}),
    ),
    honoured=(
        (
            BASE,
            {"layer_norm_eps": 1e-2, "pooler_act": "gelu", "pooler_output_size": 10, "image_size": 8, "num_channels": 1},
        ),
    ),
    training=((BASE, RATES),),
    elsewhere=(
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
        *("patch_size", "qkv_bias"),
    ),
    inert=((BASE, {"encoder_stride": 4}),),
    layers=Layers(BASE, {"image": "hidden_states"}),
    gradient=TEACHER,
    images=((TEACHER, ((28, 16), (4, 8))),),
    names={"in memory": (TEACHER, in_memory)},
    published=(  # facebook/deit-base-distilled-patch16-224, with the config.json it has
        Published(
            TEACHER.name,
            CONFIG | LABELS,
            base("deit", vit_layer(), 198)
            | {"deit.embeddings.distillation_token": (1, 1, 768)}
            | linears("{cls_classifier distillation_classifier}", 1000, 768),
            87_338_192,
        ),
    ),
)
