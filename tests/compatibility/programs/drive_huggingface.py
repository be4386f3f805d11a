"""What a user of huggingface_hub does to draw with the provider fal-ai."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub import InferenceClient
from telling import INPUT, perform

client = InferenceClient(provider="fal-ai", api_key=os.environ["FAL_KEY"])


def drawn() -> Any:
    picture = client.text_to_image(
        INPUT["prompt"], model="black-forest-labs/FLUX.1-dev", width=64, height=64, num_inference_steps=1
    )
    return {"size": picture.size}


perform({"text_to_image": drawn})
