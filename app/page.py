"""The page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio

from .answers import Limits

LOOK: dict[str, Any] = {}  # what the page adds to `launch`: css, js, head, theme


def build_page(pipelines: Mapping[str, Any], limits: Limits) -> gradio.Blocks:
    """Makes the page.

    Args:
        pipelines: a pipeline for each model's name.
        limits: what the server takes, to be said before it is hit.
    """
    with gradio.Blocks(title="ExHuBERT") as page:
        gradio.Markdown("# ExHuBERT")
    return page
