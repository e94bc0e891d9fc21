"""The streams of random numbers: one for each kind of choice, so that no two choices share their numbers."""

ORDER = 1  # of an epoch
VIEW = 2  # the crop and flip, or which of the kept views
TRANSFORM = 3  # the seed of what runs sample by sample
STEP = 4  # the seed of a training step: dropout and the like
WEAK = 5  # the crop and flip of a second view of the same image
BALANCE = 6  # which of a class's images come in an epoch, where classes are balanced
ERASE = 16  # from here on four for each kind of erasing: whether, size, row, column
MIX = 32  # from here on: partner, kind, lambda, row, column
CROP = 48  # from here on: size, row, column of the random resized crop
JITTER = 52  # from here on: brightness, contrast, saturation

VIEWS = 0x7669  # the seed of kept views, which are apart from the run's seed
