"""The configuration: typed models that validate, document and resolve themselves.

Only this package reads configuration. ``config/config.yaml``, ``config/README.md`` and
``config/schema.json`` are generated from its models (``make config-docs``), and a test fails when
they differ. It is imported while Snakemake parses the workflow: no torch, no vLLM.
"""

from video_pipeline.config.configuration import Config, load_config
from video_pipeline.config.data import Data
from video_pipeline.config.vision import Vision

__all__ = ["Config", "Data", "Vision", "load_config"]
