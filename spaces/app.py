"""The page of afmi as a Space: one network, for everyone."""

from __future__ import annotations

import os

import afmi

afmi.app.serve(
    afmi.load_model(os.environ.get("AFMI_MODEL", "imagenet")),
    host="0.0.0.0",
    port=int(os.environ.get("PORT", "7860")),
)
