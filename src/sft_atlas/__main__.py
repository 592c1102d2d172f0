"""Let `python -m sft_atlas` be the command line."""

from sft_atlas.cli import main

main()
