"""Reports without what takes longest in them."""

import base64
import pathlib

# The smallest PNG file.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)


def leave_out(patch):
    """Figures are drawn, but what is written of them is a single pixel."""
    from matplotlib.figure import Figure

    def saved(self, file, **options):
        del self, options
        if hasattr(file, "write"):
            file.write(_PIXEL)
        else:
            pathlib.Path(file).write_bytes(_PIXEL)

    patch.setattr(Figure, "savefig", saved)
