"""The families, by HuggingFace's `model_type`: a new one is one file here and one line below."""

from families.ast import AST
from families.bart import BART
from families.bert import BERT
from families.blip import BLIP
from families.clip import CLIP, CLIP_TEXT, CLIP_VISION
from families.convnext import CONVNEXT, CONVNEXT_V2
from families.deit import DEIT
from families.dinov2 import DINOV2
from families.flava import FLAVA
from families.gpt2 import GPT2
from families.llama import LLAMA
from families.llava import LLAVA
from families.resnet import RESNET
from families.roberta import ROBERTA
from families.siglip import SIGLIP, SIGLIP_TEXT, SIGLIP_VISION
from families.t5 import MT5, T5
from families.videomae import VIDEOMAE
from families.vilt import VILT
from families.vit import VIT
from families.vit_mae import VIT_MAE
from families.wav2vec2 import HUBERT, WAV2VEC2
from families.whisper import WHISPER

CASES = {
    case.model_type: case
    for case in (
        *(BERT, ROBERTA, GPT2, LLAMA),
        *(VIT, DEIT, DINOV2, VIT_MAE, RESNET, CONVNEXT, CONVNEXT_V2),
        *(CLIP, CLIP_TEXT, CLIP_VISION, SIGLIP, SIGLIP_TEXT, SIGLIP_VISION),
        *(VILT, BLIP, LLAVA, FLAVA, VIDEOMAE, T5, MT5, BART),
        *(WHISPER, WAV2VEC2, HUBERT, AST),
    )
}
