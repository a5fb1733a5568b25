"""What goes wrong, by name.

Every message says four things: which argument or file, what was expected (shape, unit, frame),
what came, and what to do about it.
"""


class XregError(ValueError):
    """Base of every error that xreg raises on purpose; the command line turns it into exit code 1."""


class GeometryError(XregError):
    """A transform, camera or ray that cannot exist, such as a pose with a reflection in it."""


class VolumeError(XregError):
    """Voxels, an affine or labels that cannot be rendered."""


class GaussianError(XregError):
    """Gaussians that cannot be rendered: a shape, a dtype, a number that is not finite, no rotation."""


class ImageError(XregError):
    """A radiograph whose pixels, size or header cannot be used."""


class FileError(XregError):
    """A file that is missing, truncated, or not what its name says."""


class RegistrationError(XregError):
    """A registration that cannot start: no overlap, no contrast, no usable pixel."""


class ShapeError(XregError):
    """Labels, meshes or measures of bones that cannot be: an unknown label, another grid, no bone in view."""


class BackendError(XregError):
    """A compiled kernel or optional package that the request needs and the machine lacks."""


class InputWarning(UserWarning):
    """A file that can be used, but whose header had to be read with a guess; the message says which."""
