"""The built-in dataset ``video``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from video_pipeline.config import Config
from video_pipeline.config.vision import Vision
from video_pipeline.data.base import BaseDataset
from video_pipeline.data.frames import FramesDataset
from video_pipeline.data.qwen_video import QwenVideoDataset, segment_of
from video_pipeline.data.registry import register_dataset
from video_pipeline.model.family import family_of_folder
from video_pipeline.model.frame_rule import has_own_rate, sampled_frames, video_processor
from video_pipeline.model.processor import dataset_model
from video_pipeline.model.prompt import check_parts, is_medium
from video_pipeline.model.sound import SoundRule, sound_rule
from video_pipeline.tasks.base import Messages
from video_pipeline.video.errors import VideoReadError

_IGNORED = ("min_frames", "min_pixels", "total_pixels", "resize")
"""Keys of ``vision`` that only qwen-vl-utils reads."""


@register_dataset("video")
class VideoDataset(QwenVideoDataset):
    """Reads the videos and images of the task's messages for any model that vLLM serves. It takes
    the place of :class:`QwenVideoDataset` below the datasets that derive from it, see
    :func:`video_pipeline.data.choosing.for_any_model`.

    The model's own video processor decides which frames are sampled, and resizes them.
    ``vision.nframes`` and ``vision.max_frames`` thin them out, and a frame of more than
    ``vision.max_pixels`` is made smaller before. ``vision.fps`` counts if the processor has no rate
    of its own; ``vllm.mm_processor_kwargs`` (``fps``, ``num_frames``) always counts. vLLM writes
    the prompt.

    With ``use_audio_in_video`` in the video item or the ``vision`` section an omni model also gets
    the sound of the same segment, in the places among the frames that its family uses. A video
    without sound is shown as if the key were not set.
    """

    version = 1

    @property
    def hears(self) -> bool:  # type: ignore[override]  # it depends on the model
        """Whether the model is one that hears videos."""
        return sound_rule(self.model) is not None

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        """A video item with the settings of the ``vision`` section and the segment of the sample;
        an image item with ``max_pixels``. Their own keys stay."""
        if "image" in part:
            return {"max_pixels": self.vision_kwargs.get("max_pixels"), **part}
        return {**self.vision_kwargs, **segment_of(sample), **part}

    def llm_inputs(self, conversations: dict[str, Messages]) -> dict[str, dict[str, Any]]:
        """Read the media of each conversation. Shared media are read once, and are the same objects
        in each.

        Raises:
            TaskError: A part of a message is neither text nor a medium.
            VideoReadError: A video or an image cannot be read, or may not.
        """
        from video_pipeline.video.reader import register_reader

        register_reader()
        read: dict[str, _Video | Image.Image] = {}
        media: dict[tuple[str, ...], dict[str, Any]] = {}
        inputs = {}
        for part, messages in conversations.items():
            items = _media_items(messages)
            names = tuple(map(repr, items))
            for name, item in zip(names, items, strict=True):
                if name not in read:
                    read[name] = self._video(item) if "video" in item else _image(item)
            if names not in media:
                media[names] = self._media([read[name] for name in names])
            inputs[part] = {"messages": messages, **media[names]}
        return inputs

    def _media(self, shown: list[_Video | Image.Image]) -> dict[str, Any]:
        """The part of the input that several conversations about the same media share."""
        videos = [video for video in shown if isinstance(video, _Video)]
        sounds = [video.sound for video in videos if video.sound is not None]
        if sounds and len(sounds) < len(videos):
            raise ValueError(
                f"the model is to hear {len(sounds)} of {len(videos)} videos of a prompt: vLLM "
                "takes the sound of all of them, or of none"
            )
        media: dict[str, list[Any]] = {}
        for item in shown:
            if isinstance(item, _Video):
                media.setdefault("video", []).append(item.frames)
            else:
                media.setdefault("image", []).append(item)
        if sounds:
            media["audio"] = sounds
        settings = self._settings([video.rate for video in videos], hears=bool(sounds))
        return {"multi_modal_data": media, "mm_processor_kwargs": settings}

    def _video(self, item: dict[str, Any]) -> _Video:
        """The frames of a video, and its sound if the model is to hear it."""
        from video_pipeline.video.reader import read_chosen

        rule = sound_rule(self.model) if item.get("use_audio_in_video") else None
        sound = None
        if isinstance(item["video"], str):
            choose = partial(sampled_frames, self.model, item, settings=self._processor_settings)
            bounds = {"bound_pixels": item.get("max_pixels")}
            sound_rate = None if rule is None else rule.rate
            frames, metadata, rate, sound = read_chosen(
                {**item, **bounds}, choose, sound_rate=sound_rate
            )
        else:
            frames, metadata, rate = _stacked(item)
        metadata["do_sample_frames"] = False  # This tells vLLM that they are sampled already.
        if rule is not None and sound is not None:
            _check_length(sound, rule)
            sound = sound[: len(sound) - len(sound) % rule.step]
        return _Video((frames, metadata), rate, sound)

    @property
    def _processor_settings(self) -> dict[str, Any]:
        """The user's settings of the processor for videos."""
        of_videos = self.processor_kwargs.get("videos_kwargs") or {}
        return {**self.processor_kwargs, **of_videos}

    def _settings(self, rates: list[float], *, hears: bool) -> dict[str, Any]:
        """Settings of the model's processor for videos that were sampled at these rates; ``hears``:
        with their sound. vLLM's own processors, for models that transformers does not know, take no
        settings."""
        if not rates or video_processor(self.model) is None:
            return {}
        videos: dict[str, Any] = {"do_sample_frames": False}
        if family_of_folder(self.model) != "qwen_omni":
            return {"videos_kwargs": videos}
        # Omni models are told the rate as a setting, and not with each video.
        if len(set(rates)) > 1:
            raise ValueError(
                "the videos are sampled at different rates, "
                f"{', '.join(f'{rate:g}' for rate in sorted(set(rates)))} frames a second, and "
                "this model is told only one for all videos of a prompt"
            )
        videos["fps"] = rates[0]
        settings: dict[str, Any] = {"videos_kwargs": videos}
        if hears:
            settings["use_audio_in_video"] = True
            # vLLM mixes sound and frames of Qwen2.5-Omni by this, and takes 1 if it is missing.
            frames_per_patch = video_processor(self.model).temporal_patch_size
            settings["second_per_grid_ts"] = [frames_per_patch / rate for rate in rates]
        return settings


@dataclass(frozen=True)
class _Video:
    """A video that was read: its frames with their metadata, the rate they were sampled at, and its
    sound if the model is to hear it."""

    frames: tuple[NDArray[np.uint8], dict[str, Any]]
    rate: float
    sound: NDArray[np.float32] | None


def _check_length(sound: NDArray[np.float32], rule: SoundRule) -> None:
    seconds = len(sound) / rule.rate
    if seconds > rule.most_seconds:
        raise VideoReadError(
            f"its sound lasts {seconds:.1f} s, and the model hears {rule.most_seconds:g} s at "
            "most: give the sample a segment, video_start and video_end, or turn "
            "use_audio_in_video off"
        )


def ignored_keys(config: Config, dataset: type[BaseDataset]) -> tuple[str, ...]:
    """The keys of the section ``vision`` that the configuration sets to other values than their
    defaults, and that have no effect with a dataset that derives from :class:`VideoDataset`. Raises
    what :func:`video_pipeline.model.processor.dataset_model` raises."""
    vision, default = config.vision, Vision()
    changed = [name for name in _IGNORED if getattr(vision, name) != getattr(default, name)]
    is_rate_set = vision.fps not in (None, default.fps) and not issubclass(dataset, FramesDataset)
    if is_rate_set and has_own_rate(dataset_model(config)):
        changed.insert(0, "fps")
    return tuple(changed)


def _media_items(messages: Messages) -> list[dict[str, Any]]:
    """The video and image items of ``messages``, in order."""
    items = []
    for message in messages:
        check_parts(message)
        if isinstance(message["content"], list):
            items += [part for part in message["content"] if is_medium(part)]
    return items


def _stacked(item: dict[str, Any]) -> tuple[NDArray[np.uint8], dict[str, Any], float]:
    """All images of a list as the frames of a video, with ``sample_fps`` frames a second."""
    if not isinstance(item["video"], list):
        raise ValueError(
            "a video of a message must be a path, an address or a list of images: "
            f"{item['video']!r:.200}"
        )
    images = [_image({**item, "image": image}) for image in item["video"]]
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)) or "no image"
        raise ValueError(f"a list of images is a video if all are of one size; these are: {listed}")
    rate = float(item.get("sample_fps", 2.0))
    metadata = {
        "fps": rate,
        "frames_indices": list(range(len(images))),
        "total_num_frames": len(images),
        "duration": len(images) / rate,
    }
    return np.stack([np.asarray(image) for image in images]), metadata, rate


def _image(item: dict[str, Any]) -> Image.Image:
    from video_pipeline.video.reader import upright_image
    from video_pipeline.video.resize import bounded_size

    image = upright_image(item["image"] if "image" in item else item["image_url"])
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"an image of a message must be a path, an address or a picture: {image!r}"
        )
    height, width = bounded_size(image.height, image.width, item.get("max_pixels"))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image
