"""Fetch the weights of the model, if anything is pending."""

from video_pipeline.common import program
from video_pipeline.common.files import write_text
from video_pipeline.config import load_config
from video_pipeline.model.model import with_commit
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.workflow.weights import fetch_weights


def main() -> None:
    args = program.parse(program.script_parser(__doc__))
    config = load_config(args.config)
    layout = Layout.of(config, args.num_shards)
    manifest = Manifest.of(config, layout)
    folder = fetch_weights(with_commit(config, manifest.commit)) if manifest.pending else ""
    write_text(layout.weights, f"{folder}\n")


if __name__ == "__main__":
    program.run(main)
