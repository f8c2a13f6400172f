"""The tour on real photographs, and the small network that it and ``load_model("photos")`` use."""
