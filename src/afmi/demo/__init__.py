"""The tour on real photographs."""

from afmi.packages import imported

imported("skimage", "a photograph to begin with", "afmi[demo]")
