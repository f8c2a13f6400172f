"""The tour on real photographs."""

from afmi.packages import imported

imported("skimage", "the demo, for its photographs,", "afmi[demo]")
