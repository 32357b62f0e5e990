"""The families, by HuggingFace's `model_type`. A new one is one file, one line here, one test."""

from mmjax.convert.ast import AST
from mmjax.convert.bart import BART
from mmjax.convert.bert import BERT
from mmjax.convert.blip import BLIP
from mmjax.convert.clip import CLIP, CLIP_TEXT, CLIP_VISION
from mmjax.convert.convnext import CONVNEXT, CONVNEXT_V2
from mmjax.convert.deit import DEIT
from mmjax.convert.dinov2 import DINOV2
from mmjax.convert.family import Family
from mmjax.convert.flava import FLAVA
from mmjax.convert.gpt2 import GPT2
from mmjax.convert.llama import LLAMA
from mmjax.convert.llava import LLAVA
from mmjax.convert.resnet import RESNET
from mmjax.convert.roberta import ROBERTA
from mmjax.convert.siglip import SIGLIP
from mmjax.convert.siglip_towers import SIGLIP_TEXT, SIGLIP_VISION
from mmjax.convert.t5 import MT5, T5
from mmjax.convert.videomae import VIDEOMAE
from mmjax.convert.vilt import VILT
from mmjax.convert.vit import VIT
from mmjax.convert.vit_mae import VIT_MAE
from mmjax.convert.wav2vec2 import HUBERT, WAV2VEC2
from mmjax.convert.whisper import WHISPER

FAMILIES: dict[str, Family] = {
    "audio-spectrogram-transformer": AST,
    "bart": BART,
    "bert": BERT,
    "blip": BLIP,
    "clip": CLIP,
    "clip_text_model": CLIP_TEXT,
    "clip_vision_model": CLIP_VISION,
    "convnext": CONVNEXT,
    "convnextv2": CONVNEXT_V2,
    "deit": DEIT,
    "dinov2": DINOV2,
    "flava": FLAVA,
    "gpt2": GPT2,
    "llama": LLAMA,
    "llava": LLAVA,
    "mt5": MT5,
    "resnet": RESNET,
    "roberta": ROBERTA,
    "siglip": SIGLIP,
    "siglip_text_model": SIGLIP_TEXT,
    "siglip_vision_model": SIGLIP_VISION,
    "t5": T5,
    "videomae": VIDEOMAE,
    "vilt": VILT,
    "vit": VIT,
    "vit_mae": VIT_MAE,
    "wav2vec2": WAV2VEC2,
    "hubert": HUBERT,  # the same model, and so after the one as which a run of our own is written
    "whisper": WHISPER,
}
