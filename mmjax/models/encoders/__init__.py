"""Encoders: raw modality -> Tokens."""

from mmjax.models.encoders.audio import AudioTransformer
from mmjax.models.encoders.convnext import ConvNeXt
from mmjax.models.encoders.frames import VideoFrames
from mmjax.models.encoders.resnet import ResNet
from mmjax.models.encoders.spectrogram_vit import SpectrogramViT
from mmjax.models.encoders.text import TextTransformer
from mmjax.models.encoders.video import VideoTransformer
from mmjax.models.encoders.vit import ViT
from mmjax.models.encoders.waveform import WaveformTransformer

ENCODERS = {
    "audio": AudioTransformer,
    "convnext": ConvNeXt,
    "resnet": ResNet,
    "spectrogram_vit": SpectrogramViT,
    "text": TextTransformer,
    "video": VideoTransformer,
    "video_frames": VideoFrames,
    "vit": ViT,
    "waveform": WaveformTransformer,
}
